"""What to read, why two totals differ, what is proven afterwards; causes are enumerated against an oracle."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterctl.actions.reading_plan import default_span, full_from, reading_plan
from meterctl.core.reconciliation import (
    SUMMARY_LAG,
    Cause,
    Difference,
    Proof,
    SpanBooks,
    cause_of,
    compared,
    proof_after,
)
from meterctl.core.settlement import MINUTE, SUMS_MAX
from meterctl.core.spans import DAY, EPOCH, HOUR, PAGE_MAX, Span, cells, halves, questions
from meterctl.ports import KnownCustomer

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MIDNIGHT = NOON - 12 * HOUR

KINDS = ("in_doubt", "held", "fresh", "sending", "cancelled", "rejected")
"""Kinds of events beside those that are simply accepted, in the order in which they explain."""

CAUSE_OF_KIND = {
    "in_doubt": Cause.IN_DOUBT,
    "held": Cause.HELD,
    "fresh": Cause.NOT_YET_CAUGHT_UP,
    "sending": Cause.NOT_YET_CAUGHT_UP,
    "cancelled": Cause.CANCELLED,
    "rejected": Cause.REJECTED_AFTERWARDS,
}

Event = tuple[str, int]
"""Kind and weight."""


def books(accepted: int, events: tuple[Event, ...] = ()) -> SpanBooks:
    weights: dict[str, Any] = {kind: Counter(Decimal(weight) for of, weight in events if of == kind) for kind in KINDS}
    fresh = sum(weight for kind, weight in events if kind == "fresh")
    plain = SpanBooks(
        accepted=Decimal(accepted + fresh),
        accepted_size=Decimal(abs(accepted) + sum(abs(weight) for kind, weight in events if kind == "fresh")),
        accepted_count=int(bool(accepted)) + sum(kind == "fresh" for kind, _ in events),
    )
    return replace(plain, **weights)


def oracle(total: int, accepted: int, events: tuple[Event, ...]) -> Cause | None:
    """Try every subset of what may or may not be in Stripe's total, kind by kind."""
    given_books = books(accepted, events)
    if total == given_books.accepted:
        return None
    allowed: set[str] = set()
    for cause in dict.fromkeys(CAUSE_OF_KIND.values()):
        kinds = {kind for kind, of in CAUSE_OF_KIND.items() if of is cause}
        allowed |= kinds
        if not any(kind in kinds for kind, _ in events):
            continue
        weights = [-weight if kind == "fresh" else weight for kind, weight in events if kind in allowed]
        subsets = (subset for size in range(len(weights) + 1) for subset in combinations(weights, size))
        if any(given_books.accepted + sum(subset) == total for subset in subsets):
            return cause
    return Cause.SHORTFALL if total < given_books.accepted and given_books.accepted_count else Cause.FOREIGN_WRITER


def cases() -> Iterator[tuple[int, int, tuple[Event, ...]]]:
    possible = list(product(KINDS, (-2, 1, 3)))
    for size in range(4):
        for events in combinations_with_replacement(possible, size):
            for accepted in (0, 5):
                for total in range(-3, 12, 1 if size < 3 else 2):
                    yield total, accepted, events


def test_every_case_of_up_to_three_events_is_the_oracles() -> None:
    count = 0
    for total, accepted, events in cases():
        where = f"total {total}, accepted {accepted}, {events}"
        assert cause_of(Decimal(total), books(accepted, events)) == oracle(total, accepted, events), where
        count += 1
    assert count > 20_000


def test_a_doubles_rounding_is_no_difference_and_a_unit_is() -> None:
    thirds = SpanBooks(accepted=Decimal("0.3"), accepted_size=Decimal("0.3"), accepted_count=3)
    assert cause_of(Decimal("0.30000000000000004"), thirds) is None
    assert cause_of(Decimal("0.300001"), thirds) is Cause.FOREIGN_WRITER
    large = SpanBooks(accepted=Decimal(10**12), accepted_size=Decimal(10**12), accepted_count=1)
    assert cause_of(Decimal(10**12 - 1), large) is Cause.SHORTFALL


@pytest.mark.parametrize(("total", "cause"), [(150, Cause.IN_DOUBT), (10**9, Cause.FOREIGN_WRITER)])
def test_more_doubts_than_can_be_tried_are_bounded(total: int, cause: Cause) -> None:
    many = {Decimal(weight): 9 for weight in range(1, 40)}
    assert 10 ** len(many) > SUMS_MAX
    assert cause_of(Decimal(total), SpanBooks(in_doubt=many)) is cause


def test_a_hundred_thousand_equal_events_are_tried_or_bounded_at_once() -> None:
    many = SpanBooks(accepted=Decimal(10**5), accepted_count=10**5, fresh={Decimal(1): 10**5})
    assert cause_of(Decimal(7), many) is Cause.NOT_YET_CAUGHT_UP


# What to read


def span(start: datetime, end: datetime) -> Span:
    return Span(start=start, end=end)


minutes = st.integers(0, 5 * 24 * 60).map(lambda n: NOON - n * MINUTE)


@given(minutes, minutes, st.sampled_from([HOUR, DAY]))
def test_questions_cover_the_cells_once_on_bounds_that_stripe_takes(
    one: datetime, other: datetime, unit: timedelta
) -> None:
    start, end = sorted((one, other))
    parts = cells(span(start, end), unit)
    assert sum((part.length for part in parts), timedelta(0)) == end - start
    answered: list[Span] = []
    for question in questions(span(start, end), unit):
        if question.unit is not None:
            assert not (question.span.start - EPOCH) % unit
            assert not (question.span.end - EPOCH) % unit
            answered += cells(question.span, unit)
        else:
            answered.append(question.span)
    assert answered == parts


def test_a_month_costs_two_reads() -> None:
    usual = default_span(NOON + timedelta(seconds=42))
    assert usual == span(full_from(NOON), NOON - SUMMARY_LAG)
    assert (usual.start, usual.end) == (MIDNIGHT - 35 * DAY, NOON - timedelta(minutes=75))
    assert [question.read_count for question in questions(usual, DAY)] == [1, 1]
    long = questions(span(MIDNIGHT - 101 * DAY, MIDNIGHT), DAY)
    assert ([question.read_count for question in long], PAGE_MAX) == ([2], 100)


@given(st.integers(2, 60))
def test_halves_meet_and_are_shorter(length: int) -> None:
    first, second = halves(span(NOON, NOON + length * MINUTE))
    assert first.end == second.start
    assert MINUTE <= first.length <= second.length < length * MINUTE


def test_the_longest_unproven_come_first() -> None:
    def known(name: str, proven_until: datetime | None) -> KnownCustomer:
        return KnownCustomer(event_name="runs", customer=name, proven_until=proven_until)

    customers = [known("new", NOON), known("never", None), known("old", NOON - DAY)]
    plan = reading_plan(customers, default_span(NOON), reads_max=5)
    assert [one.customer for one in plan.chosen] == ["never", "old"]
    assert ([one.customer for one in plan.left], plan.read_count) == (["new"], 4)


# What mends it


@pytest.mark.parametrize(
    ("cause", "length", "command"),
    [
        (Cause.SHORTFALL, MINUTE, "meterctl ledger doubt --meter runs --customer cus_1 --minute 2026-11-21T12:00:00Z"),
        (
            Cause.SHORTFALL,
            HOUR,
            "meterctl reconcile --meter runs --customer cus_1 --since 2026-11-21T12:00:00Z --until",
        ),
        (Cause.FOREIGN_WRITER, MINUTE, None),
        (Cause.FOREIGN_WRITER, DAY, "meterctl reconcile"),
        (Cause.IN_DOUBT, DAY, "meterctl settle --meter runs"),
        (Cause.HELD, DAY, "meterctl settle --meter runs"),
        (Cause.NOT_YET_CAUGHT_UP, DAY, "meterctl reconcile"),
        (Cause.CANCELLED, DAY, "meterctl ledger list --state cancelled"),
        (Cause.REJECTED_AFTERWARDS, DAY, "meterctl ledger list --state rejected"),
        (Cause.UNKNOWN_CUSTOMER, DAY, None),
    ],
)
def test_every_cause_has_its_command(cause: Cause, length: timedelta, command: str | None) -> None:
    found = difference(cause, length).command
    assert found is None if command is None else found is not None and found.startswith(command)


def test_a_customer_id_of_strange_letters_is_quoted() -> None:
    found = difference(Cause.SHORTFALL, MINUTE, customer="it's; rm").command
    assert found is not None
    assert "--customer 'it'\\''s; rm' " in found


def difference(cause: Cause, length: timedelta, customer: str = "cus_1") -> Difference:
    return Difference(
        event_name="runs",
        customer=customer,
        span=span(NOON, NOON + length),
        ledger_total=Decimal(3),
        stripe_total=Decimal(2),
        cause=cause,
    )


# What is proven

BEFORE = Proof(start=MIDNIGHT - 35 * DAY, end=MIDNIGHT, at=MIDNIGHT)
AGAIN = Proof(start=MIDNIGHT - 34 * DAY, end=NOON, at=NOON)


@pytest.mark.parametrize(
    ("previous", "end", "is_full", "differs", "expected"),
    [
        (None, NOON, False, False, AGAIN),
        (BEFORE, NOON, True, False, AGAIN),
        (BEFORE, MIDNIGHT - 9 * DAY, True, True, Proof(start=AGAIN.start, end=MIDNIGHT - 9 * DAY, at=NOON)),
        (BEFORE, MIDNIGHT - 9 * DAY, True, False, BEFORE),
        (BEFORE, NOON, False, False, BEFORE),
        (BEFORE, NOON, False, True, BEFORE),
        (BEFORE, MIDNIGHT - 9 * DAY, False, True, Proof(start=BEFORE.start, end=MIDNIGHT - 9 * DAY, at=MIDNIGHT)),
        (BEFORE, BEFORE.start - DAY, False, True, Proof(start=BEFORE.start, end=BEFORE.start, at=MIDNIGHT)),
    ],
)
def test_only_a_full_comparison_proves_more_and_any_difference_proves_less(
    previous: Proof | None, end: datetime, *, is_full: bool, differs: bool, expected: Proof
) -> None:
    found = Proof(start=AGAIN.start, end=end, at=NOON)
    assert proof_after(previous, found, is_full=is_full, differs=differs) == expected


def test_the_rest_of_a_longer_span_has_its_tolerance() -> None:
    part = compared(span(NOON, NOON + MINUTE), Decimal("1e-6"), SpanBooks(), tolerance=Decimal("1e-5"), derived=True)
    assert part.cause is None
