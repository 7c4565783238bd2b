"""The state machine of one attempt: (claim, outcome) → what to write. All that the protocol says about answers."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from meterctl.core.model import Claim, Outcome, OutcomeKind, SettledBy, State

IDENTIFIER_TAKEN = "identifier_taken"
"""Code of an event whose identifier Stripe knew before we ever sent it: somebody else has reported under it."""

_PROVES_UNPROCESSED = frozenset(
    {
        OutcomeKind.NOT_PROCESSED,
        OutcomeKind.METER_UNAVAILABLE,
        OutcomeKind.NOT_PERMITTED,
        OutcomeKind.NOT_SENT,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """What `record` writes for one heard attempt.

    `in_doubt`: whether `doubt_since` stays; every other state ends the doubt. `ever_in_doubt` is never cleared.
    `totals_only`: the doubt counts as older than any identifier is remembered.
    """

    state: State
    answers_heard: int
    ever_in_doubt: bool
    settled_by: SettledBy | None = None
    accepted_at: datetime | None = None
    late: bool = False
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None
    totals_only: bool = False

    @property
    def moved_on(self) -> bool:
        """Whether the event needs no further attempt."""
        return self.state in {State.ACCEPTED, State.REJECTED}

    @property
    def in_doubt(self) -> bool:
        """Whether the event keeps its `doubt_since`."""
        return self.state is State.IN_DOUBT


def advance(
    claim: Claim, outcome: Outcome, *, now: datetime, grace: timedelta, adopt_identifiers_until: datetime | None = None
) -> Transition:
    """Given a claim and what its attempt came to, return the transition to record.

    `grace` is how long after its period's end an event still reaches the invoice. `adopt_identifiers_until`: until
    then a first "already exists" is the predecessor's report of the same usage.
    """
    adopting = adopt_identifiers_until is not None and now < adopt_identifiers_until
    state, settled_by, code = _verdict(claim, outcome, adopting=adopting)
    accepted = state is State.ACCEPTED
    return Transition(
        state=state,
        answers_heard=claim.answers_heard + outcome.heard,
        ever_in_doubt=claim.ever_in_doubt or state is State.IN_DOUBT,
        settled_by=settled_by,
        accepted_at=now if accepted else None,
        late=accepted and is_late(now, claim.period_end, grace),
        error_code=None if accepted else code,
        error_message=None if accepted else outcome.message,
        request_id=outcome.request_id,
        totals_only=_contradicts(claim, outcome),
    )


def _contradicts(claim: Claim, outcome: Outcome) -> bool:
    """Whether Stripe knows the identifier of an event that it was proven not to have.

    It remembers identifiers of events that it dropped after its 200, too, so only its totals can tell.
    """
    return claim.proven_absent and outcome.kind is OutcomeKind.ALREADY_EXISTS


def _verdict(claim: Claim, outcome: Outcome, *, adopting: bool) -> tuple[State, SettledBy | None, str | None]:
    kind = outcome.kind
    if kind is OutcomeKind.ACCEPTED:
        return State.ACCEPTED, SettledBy.ANSWER, None
    if kind is OutcomeKind.ALREADY_EXISTS and not _contradicts(claim, outcome):
        if claim.ever_in_doubt or adopting:
            return State.ACCEPTED, SettledBy.ALREADY_EXISTS, None
        return State.REJECTED, None, IDENTIFIER_TAKEN
    if kind in _PROVES_UNPROCESSED:
        return claim.claimed_from, None, outcome.code
    if kind is OutcomeKind.REJECTED and not claim.older_doubt:
        return State.REJECTED, None, outcome.code
    return State.IN_DOUBT, None, outcome.code


def is_late(accepted_at: datetime, period_end: datetime | None, grace: timedelta) -> bool:
    """Whether usage of a period that ended at `period_end` was accepted too late for that period's invoice."""
    return period_end is not None and accepted_at > period_end + grace


def may_retry(outcome: Outcome) -> bool:
    """Whether another attempt in the same run can teach more. An answer about the event itself would only repeat."""
    return outcome.kind in {OutcomeKind.NOT_PROCESSED, OutcomeKind.UNKNOWN}
