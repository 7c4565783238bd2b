"""The transition table, whole: every state an attempt starts from, by every outcome, by doubt or none."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product

import pytest

from meterctl.core.model import Claim, MeterEvent, Outcome, OutcomeKind, SettledBy, State
from meterctl.core.state import IDENTIFIER_TAKEN, Transition, advance, may_retry

NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)

P, D, A, R = State.PENDING, State.IN_DOUBT, State.ACCEPTED, State.REJECTED
FRESH, CLEARED, DOUBTFUL = (P, False), (P, True), (D, True)
"""Claimed from pending and never in doubt; from pending after a doubt was settled as absent; from in_doubt."""

TABLE = {
    OutcomeKind.ACCEPTED: {FRESH: A, CLEARED: A, DOUBTFUL: A},
    OutcomeKind.ALREADY_EXISTS: {FRESH: R, CLEARED: A, DOUBTFUL: A},
    OutcomeKind.REJECTED: {FRESH: R, CLEARED: R, DOUBTFUL: D},
    OutcomeKind.NOT_PROCESSED: {FRESH: P, CLEARED: P, DOUBTFUL: D},
    OutcomeKind.METER_UNAVAILABLE: {FRESH: P, CLEARED: P, DOUBTFUL: D},
    OutcomeKind.NOT_PERMITTED: {FRESH: P, CLEARED: P, DOUBTFUL: D},
    OutcomeKind.NOT_SENT: {FRESH: P, CLEARED: P, DOUBTFUL: D},
    OutcomeKind.UNKNOWN: {FRESH: D, CLEARED: D, DOUBTFUL: D},
}


def claim(start: tuple[State, bool] = FRESH, *, answers_heard: int = 0, period_end: datetime | None = None) -> Claim:
    event = MeterEvent(
        id=1, event_name="m", customer="cus", identifier="i", payload={"value": "1"}, timestamp=NOW - HOUR
    )
    return Claim(
        event=event,
        run_id=7,
        attempt_count=answers_heard + 1,
        answers_heard=answers_heard,
        claimed_from=start[0],
        ever_in_doubt=start[1],
        source_row_id="1",
        quantity=Decimal(1),
        period_end=period_end,
    )


def after(start: tuple[State, bool], kind: OutcomeKind, *, adopt_until: datetime | None = None) -> Transition:
    outcome = Outcome(kind=kind, heard=True, code="c", message="m")
    return advance(claim(start), outcome, now=NOW, grace=HOUR, adopt_identifiers_until=adopt_until)


def test_a_known_identifier_of_what_was_proven_absent_is_a_matter_for_totals() -> None:
    """Stripe remembers the identifiers of events that it dropped after its 200."""
    for start in (CLEARED, DOUBTFUL):
        proven = replace(claim(start), proven_absent=True)
        transition = advance(proven, Outcome(kind=OutcomeKind.ALREADY_EXISTS, heard=True), now=NOW, grace=HOUR)
        assert (transition.state, transition.totals_only) == (D, True)
        assert advance(proven, Outcome(kind=OutcomeKind.ACCEPTED, heard=True), now=NOW, grace=HOUR).state is A
        assert not advance(proven, Outcome(kind=OutcomeKind.UNKNOWN), now=NOW, grace=HOUR).totals_only


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(OutcomeKind)


@pytest.mark.parametrize(("kind", "start"), list(product(OutcomeKind, (FRESH, CLEARED, DOUBTFUL))))
def test_every_outcome_from_every_start(kind: OutcomeKind, start: tuple[State, bool]) -> None:
    transition = after(start, kind)
    assert transition.state is TABLE[kind][start]
    assert transition.ever_in_doubt is (start[1] or transition.state is D), "ever_in_doubt is never cleared"
    assert (transition.state is A) == (transition.accepted_at == NOW) == (transition.settled_by is not None)
    assert transition.state is not R or transition.error_code is not None


def test_only_an_attempt_in_doubt_makes_a_known_identifier_ours() -> None:
    assert after(FRESH, OutcomeKind.ALREADY_EXISTS).error_code == IDENTIFIER_TAKEN
    assert after(DOUBTFUL, OutcomeKind.ALREADY_EXISTS).settled_by is SettledBy.ALREADY_EXISTS


@pytest.mark.parametrize(("until", "state"), [(NOW + HOUR, A), (NOW, R), (NOW - HOUR, R)])
def test_adopting_ends_at_its_instant(until: datetime, state: State) -> None:
    assert after(FRESH, OutcomeKind.ALREADY_EXISTS, adopt_until=until).state is state


@pytest.mark.parametrize(("heard", "expected"), [(True, "i:3"), (False, "i:2")])
def test_any_answer_heard_moves_the_idempotency_key_on(heard: bool, expected: str) -> None:  # noqa: FBT001 -- a table
    first = claim(answers_heard=2)
    assert first.idempotency_key == "i:2"
    moved = advance(first, Outcome(kind=OutcomeKind.UNKNOWN, heard=heard), now=NOW, grace=HOUR)
    assert claim(DOUBTFUL, answers_heard=moved.answers_heard).idempotency_key == expected


@pytest.mark.parametrize(
    ("period_end", "late"), [(None, False), (NOW - HOUR, False), (NOW - HOUR - timedelta(seconds=1), True)]
)
def test_late_is_after_the_period_and_its_grace(period_end: datetime | None, late: bool) -> None:  # noqa: FBT001 -- a table
    outcome = Outcome(kind=OutcomeKind.ACCEPTED, heard=True)
    assert advance(claim(period_end=period_end), outcome, now=NOW, grace=HOUR).late is late


def test_only_what_another_attempt_can_change_is_tried_again() -> None:
    again = {kind for kind in OutcomeKind if may_retry(Outcome(kind=kind))}
    assert again == {OutcomeKind.NOT_PROCESSED, OutcomeKind.UNKNOWN}
