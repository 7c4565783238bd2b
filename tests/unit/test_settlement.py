"""The settlement decision, enumerated against an oracle that tries every subset."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations, combinations_with_replacement

import pytest

from meterctl.core.settlement import QUIET_MIN, SUMS_MAX, Books, Doubt, HeldReason, Verdict, Window, decide

MINUTE = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
WINDOW = Window(customer="cus_ada", minute=MINUTE)
VALUES = [Decimal(value) for value in range(-4, 5)]


def books(weights: Sequence[Decimal | int | str], accepted: Decimal | int | str = 0) -> Books:
    doubts = tuple(Doubt(id=n, weight=Decimal(weight)) for n, weight in enumerate(weights, start=1))
    return Books(
        accepted=Decimal(accepted),
        accepted_size=abs(Decimal(accepted)),
        doubts=doubts,
        last_attempt_at=None,
        is_sending=False,
    )


def oracle(total: Decimal, weights: Sequence[Decimal], accepted: Decimal) -> HeldReason | Counter[Decimal]:
    """Try every subset; weights of 0 stand aside."""
    weights = [weight for weight in weights if weight]
    fitting = {
        tuple(sorted(subset))
        for size in range(len(weights) + 1)
        for subset in combinations(weights, size)
        if accepted + sum(subset) == total
    }
    if not fitting:
        return HeldReason.SHORTFALL if total < accepted else HeldReason.FOREIGN
    return HeldReason.AMBIGUOUS if len(fitting) > 1 else Counter(fitting.pop())


def cases() -> Iterator[tuple[Decimal, tuple[Decimal, ...], Decimal]]:
    for size in range(4):
        for weights in combinations_with_replacement(VALUES, size):
            for accepted in (Decimal(-3), Decimal(0), Decimal(5)):
                for total in range(-16, 18):
                    yield Decimal(total), weights, accepted


def test_every_case_of_up_to_three_events_is_the_oracles() -> None:
    count = 0
    for total, weights, accepted in cases():
        given = books(weights, accepted)
        verdict, expected = decide(total, given, WINDOW), oracle(total, weights, accepted)
        where = f"total {total}, accepted {accepted}, doubts {weights}"
        if isinstance(expected, HeldReason):
            assert verdict == Verdict(held_reason=expected), where
        else:
            by_id = {doubt.id: doubt.weight for doubt in given.doubts}
            assert Counter(by_id[n] for n in verdict.present_ids if by_id[n]) == expected, where
            assert sorted((*verdict.present_ids, *verdict.absent_ids)) == sorted(by_id), where
        count += 1
    assert count == 220 * 3 * 34


def test_of_equal_events_the_lowest_ids_are_present() -> None:
    assert decide(Decimal(2), books([1, 1, 1]), WINDOW) == Verdict(present_ids=(1, 2), absent_ids=(3,))


def test_a_doubtful_zero_is_accepted() -> None:
    assert decide(Decimal(0), books([0, 3]), WINDOW) == Verdict(present_ids=(1,), absent_ids=(2,))


def test_a_double_that_is_a_little_off_still_decides() -> None:
    total = Decimal(repr(0.1 + 0.2))
    assert decide(total, books(["0.2"], accepted="0.1"), WINDOW).present_ids == (1,)


def test_totals_too_large_for_the_gap_are_held() -> None:
    """At 10^15 a double cannot tell a hundredth."""
    assert decide(Decimal(10**15), books(["0.01"], accepted=10**15), WINDOW).held_reason is HeldReason.IMPRECISE


def test_large_totals_decide_large_doubts() -> None:
    assert decide(Decimal(10**15), books([1000], accepted=10**15), WINDOW).absent_ids == (1,)


def test_too_many_different_doubts_are_a_persons() -> None:
    weights = [Decimal(2) ** n for n in range(20)]
    assert SUMS_MAX < 2**20
    assert decide(Decimal(1), books(weights), WINDOW).held_reason is HeldReason.AMBIGUOUS


def test_many_equal_doubts_are_decided() -> None:
    verdict = decide(Decimal(300), books([1] * 500), WINDOW)
    assert (len(verdict.present_ids), len(verdict.absent_ids)) == (300, 200)


@pytest.mark.parametrize(
    ("ends", "divided"),
    [
        ([MINUTE + timedelta(seconds=30)] * 2, True),
        ([MINUTE, MINUTE + timedelta(days=30)], True),
        ([None, MINUTE + timedelta(days=30)], True),
        ([MINUTE + timedelta(days=30)] * 2, False),
        ([MINUTE + timedelta(minutes=1)] * 2, False),
        ([None, None], False),
    ],
)
def test_a_minute_that_a_period_divides_is_decided_whole_or_not_at_all(
    ends: list[datetime | None], *, divided: bool
) -> None:
    doubts = tuple(Doubt(id=n, weight=Decimal(1), period_end=end) for n, end in enumerate(ends))
    given = Books(accepted=Decimal(0), accepted_size=Decimal(0), doubts=doubts, last_attempt_at=None, is_sending=False)
    assert decide(Decimal(1), given, WINDOW).held_reason is (HeldReason.AMBIGUOUS if divided else None)
    assert decide(Decimal(2), given, WINDOW).present_ids == (0, 1)
    assert decide(Decimal(0), given, WINDOW).absent_ids == (0, 1)


@pytest.mark.parametrize(
    ("since_attempt", "is_sending", "admitted"),
    [
        (QUIET_MIN, False, True),
        (QUIET_MIN - timedelta(microseconds=1), False, False),
        (QUIET_MIN * 9, True, False),
        (None, False, True),
    ],
)
def test_a_read_counts_only_where_nothing_was_sent_shortly_before(
    since_attempt: timedelta | None, *, is_sending: bool, admitted: bool
) -> None:
    given = Books(
        accepted=Decimal(0),
        accepted_size=Decimal(0),
        doubts=(),
        last_attempt_at=None if since_attempt is None else MINUTE - since_attempt,
        is_sending=is_sending,
    )
    assert given.admits_read(MINUTE) is admitted
