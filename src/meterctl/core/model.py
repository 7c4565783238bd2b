"""The words of the design as values: events, claims, outcomes. Nothing here does any I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

PAST_LIMIT = timedelta(days=35)
"""Oldest timestamp Stripe takes (OpenAPI, `MeterEventCreateParams.timestamp`); seen to be rolling seconds, not days."""

RESEND_LIMIT = timedelta(hours=23)
"""A doubt this old is never sent again.

Stripe refuses a repeated identifier for "at least 24 hours" (OpenAPI, `MeterEventCreateParams.identifier`); an hour is
kept for clocks, queues and the time a call may take.
"""

CLAIM_AGE_MAX = timedelta(minutes=5)
"""A claim older than this is returned instead of sent: a suspended machine must not act on an old decision."""

CLOCK_DIFFERENCE_MAX = timedelta(minutes=5)
"""Beyond this, Stripe's clock and PostgreSQL's disagree and no decision that rests on time may be taken."""


def clocks_apart(other: datetime, now: datetime, *, whose: str = "Stripe's") -> str | None:
    """Given another clock's instant and PostgreSQL's, return what to say if they differ too much, or None."""
    if abs(other - now) <= CLOCK_DIFFERENCE_MAX:
        return None
    return f"{whose} clock ({other:%F %T}Z) and PostgreSQL's ({now:%F %T}Z) are > 5 min apart"


class State(StrEnum):
    """What became of a meter event. The drawing is in docs/protocol.md."""

    PENDING = "pending"
    SENDING = "sending"
    IN_DOUBT = "in_doubt"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REPLACED = "replaced"
    WAIVED = "waived"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


class SettledBy(StrEnum):
    """What made an event accepted."""

    ANSWER = "answer"
    ALREADY_EXISTS = "already_exists"
    TOTALS = "totals"
    PERSON = "person"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterEvent:
    """One fact for Stripe, frozen when it was collected: every attempt sends the same bytes."""

    id: int
    event_name: str
    customer: str
    identifier: str
    payload: Mapping[str, str]
    timestamp: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The right to make one attempt, committed before a byte goes out.

    `attempt_count` counts this attempt; `answers_heard` only earlier ones. `claimed_from` is pending or in_doubt.
    `proven_absent`: after an earlier attempt Stripe's totals, or a person, said that it does not have the event.
    """

    event: MeterEvent
    run_id: int
    attempt_count: int
    answers_heard: int
    claimed_from: State
    ever_in_doubt: bool
    source_row_id: str | None
    quantity: Decimal
    period_end: datetime | None
    proven_absent: bool = False

    @property
    def older_doubt(self) -> bool:
        """Whether the fate of an earlier attempt is unknown. This attempt's answer says nothing about that one."""
        return self.claimed_from is State.IN_DOUBT

    @property
    def idempotency_key(self) -> str:
        """Same key while nothing was heard, a new one after any answer: Stripe replays stored answers, even a 500."""
        return f"{self.event.identifier}:{self.answers_heard}"


class OutcomeKind(StrEnum):
    """What one attempt came to, in terms of what it proves about that attempt alone."""

    ACCEPTED = "accepted"
    ALREADY_EXISTS = "already_exists"
    REJECTED = "rejected"
    NOT_PROCESSED = "not_processed"
    METER_UNAVAILABLE = "meter_unavailable"
    NOT_PERMITTED = "not_permitted"
    UNKNOWN = "unknown"
    NOT_SENT = "not_sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The answer to one attempt, or its absence.

    `heard`: some answer arrived. `code` and `message` are Stripe's, or name what went wrong on the way.
    `stripe_date` is the answer's `Date`, aware UTC. `livemode` only where the answer says so.
    """

    kind: OutcomeKind
    heard: bool = False
    status: int | None = None
    code: str | None = None
    message: str | None = None
    request_id: str | None = None
    stripe_date: datetime | None = None
    livemode: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A claim with the outcome of its attempt."""

    claim: Claim
    outcome: Outcome


@dataclass(kw_only=True, slots=True)
class Problem:
    """Something a person must look at: how many, a few of them by name, and the next command."""

    code: str
    count: int = 0
    sample_ids: list[str] = field(default_factory=list)
    hint: str = ""
