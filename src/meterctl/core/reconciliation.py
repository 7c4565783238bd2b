"""Comparing the ledger with Stripe: whether two totals are equal, and why they are not. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from meterctl.core.model import State
from meterctl.core.settlement import DOUBLE_TOLERANCE, MINUTE, QUIET_MIN, SERIES_MIN, SUMS_MAX
from meterctl.core.spans import Span

SUMMARY_LAG = QUIET_MIN + SERIES_MIN
"""How long Stripe's totals may lack what it has taken: 75 minutes, the lag that settling outlasts. Stripe calls them
"eventually consistent" without a figure (OpenAPI, event_summaries)."""


class Cause(StrEnum):
    """Why Stripe's total is another than the ledger's."""

    IN_DOUBT = "in_doubt"
    HELD = "held"
    NOT_YET_CAUGHT_UP = "not_yet_caught_up"
    CANCELLED = "cancelled"
    REJECTED_AFTERWARDS = "rejected_afterwards"
    UNKNOWN_CUSTOMER = "unknown_customer"
    SHORTFALL = "shortfall"
    FOREIGN_WRITER = "foreign_writer"

    @property
    def explains(self) -> bool:
        """Whether no one need act on account of it: it passes, or something else names it until a person acts."""
        return self in {Cause.IN_DOUBT, Cause.HELD, Cause.NOT_YET_CAUGHT_UP}


Weights = Mapping[Decimal, int]
"""What events add to a total → how many of them there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanBooks:
    """What the ledger says of a customer and span.

    `accepted` includes `fresh`, what Stripe may not show yet. Whether Stripe's total holds the others is open: those
    in doubt, held, being `sending` just now; or they should not be in it: `cancelled`, `rejected` after an attempt.
    """

    accepted: Decimal = Decimal(0)
    accepted_size: Decimal = Decimal(0)
    accepted_count: int = 0
    late_count: int = 0
    late_units: Decimal = Decimal(0)
    fresh: Weights = field(default_factory=dict)
    in_doubt: Weights = field(default_factory=dict)
    held: Weights = field(default_factory=dict)
    sending: Weights = field(default_factory=dict)
    cancelled: Weights = field(default_factory=dict)
    rejected: Weights = field(default_factory=dict)

    def __add__(self, other: "SpanBooks") -> "SpanBooks":
        """Return the books of both spans together."""
        return SpanBooks(
            accepted=self.accepted + other.accepted,
            accepted_size=self.accepted_size + other.accepted_size,
            accepted_count=self.accepted_count + other.accepted_count,
            late_count=self.late_count + other.late_count,
            late_units=self.late_units + other.late_units,
            fresh=_both(self.fresh, other.fresh),
            in_doubt=_both(self.in_doubt, other.in_doubt),
            held=_both(self.held, other.held),
            sending=_both(self.sending, other.sending),
            cancelled=_both(self.cancelled, other.cancelled),
            rejected=_both(self.rejected, other.rejected),
        )


def _both(one: Weights, other: Weights) -> Weights:
    return {weight: one.get(weight, 0) + other.get(weight, 0) for weight in (*one, *other)}


def tolerance_of(stripe_total: Decimal, books: SpanBooks) -> Decimal:
    """Return how far a total that Stripe sends as a double may be off."""
    return DOUBLE_TOLERANCE * max(abs(stripe_total), books.accepted_size)


def cause_of(stripe_total: Decimal, books: SpanBooks, *, tolerance: Decimal | None = None) -> Cause | None:
    """Given Stripe's total of a span, return why it is not the ledger's; None if it is.

    The first kind of event counts that makes up the difference together with the kinds before it. What passes by itself
    comes before what must be looked at, and `shortfall` and `foreign_writer` are what is left.
    """
    allowed = tolerance_of(stripe_total, books) if tolerance is None else tolerance
    missing = stripe_total - books.accepted
    if abs(missing) <= allowed:
        return None
    open_weights: Weights = {}
    for cause, weights in _explanations(books):
        open_weights = _both(open_weights, weights)
        if weights and _can_make(missing, open_weights, allowed):
            return cause
    return Cause.SHORTFALL if missing < 0 and books.accepted_count else Cause.FOREIGN_WRITER


def _explanations(books: SpanBooks) -> Iterator[tuple[Cause, Weights]]:
    yield Cause.IN_DOUBT, books.in_doubt
    yield Cause.HELD, books.held
    not_shown = {-weight: count for weight, count in books.fresh.items()}
    yield Cause.NOT_YET_CAUGHT_UP, _both(not_shown, books.sending)
    yield Cause.CANCELLED, books.cancelled
    yield Cause.REJECTED_AFTERWARDS, books.rejected


def _can_make(missing: Decimal, weights: Weights, tolerance: Decimal) -> bool:
    """Whether some of the weights add up to what is missing; where those are too many to try, whether they might."""
    sums = {Decimal(0)}
    for weight, count in weights.items():
        if len(sums) * (count + 1) > SUMS_MAX:
            return _lowest(weights) - tolerance <= missing <= _highest(weights) + tolerance
        sums = {reached + taken * weight for reached in sums for taken in range(count + 1)}
    return any(abs(missing - reached) <= tolerance for reached in sums)


def _lowest(weights: Weights) -> Decimal:
    return sum((weight * count for weight, count in weights.items() if weight < 0), Decimal(0))


def _highest(weights: Weights) -> Decimal:
    return sum((weight * count for weight, count in weights.items() if weight > 0), Decimal(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A span whose two totals were compared. `derived`: Stripe's is the rest of a longer span's, not read itself."""

    span: Span
    stripe_total: Decimal
    books: SpanBooks
    tolerance: Decimal
    cause: Cause | None
    derived: bool = False


def compared(
    span: Span, stripe_total: Decimal, books: SpanBooks, *, tolerance: Decimal | None = None, derived: bool = False
) -> Compared:
    """Compare the two totals of a span. `tolerance`: of the longer span that the total is the rest of."""
    allowed = tolerance_of(stripe_total, books) if tolerance is None else tolerance
    cause = cause_of(stripe_total, books, tolerance=allowed)
    return Compared(span=span, stripe_total=stripe_total, books=books, tolerance=allowed, cause=cause, derived=derived)


REJECTED_OR_CLOSED = (State.REJECTED, State.REPLACED, State.WAIVED, State.EXPIRED, State.SUPERSEDED)
"""What should not be in Stripe's totals, and may have been rejected there at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two totals of one customer and span that are not equal, and why."""

    event_name: str
    customer: str
    span: Span
    ledger_total: Decimal
    stripe_total: Decimal
    cause: Cause

    @property
    def command(self) -> str | None:
        """The command that mends it or tells more; None where only Stripe can tell."""
        of = f"--meter {_quoted(self.event_name)} --customer {_quoted(self.customer)}"
        within = f"--since {_z(self.span.start)} --until {_z(self.span.end)}"
        settle = f"meterctl settle --meter {_quoted(self.event_name)}"
        closed = " ".join(f"--state {state}" for state in REJECTED_OR_CLOSED)
        commands: dict[Cause, str | None] = {
            Cause.IN_DOUBT: settle,
            Cause.HELD: settle,
            Cause.CANCELLED: f"meterctl ledger list --state cancelled {of} {within}",
            Cause.REJECTED_AFTERWARDS: f"meterctl ledger list {closed} {of} {within}",
            Cause.UNKNOWN_CUSTOMER: None,
        }
        if self.span.length == MINUTE:
            doubt = f"meterctl ledger doubt {of} --minute {_z(self.span.start)} --reason 'Stripe has less'"
            commands |= {Cause.SHORTFALL: doubt, Cause.FOREIGN_WRITER: None}
        return commands.get(self.cause, f"meterctl reconcile {of} {within}")


def _quoted(word: str) -> str:
    """Return the word as a shell wants it; what cannot be seen is spelled out, as bash and zsh read it."""
    if not word.isprintable():
        return "$'" + "".join(map(_spelled, word)) + "'"
    return word if re.fullmatch(r"[\w.:-]+", word) else "'" + word.replace("'", "'\\''") + "'"


def _spelled(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _z(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Up to where a customer's totals were found equal: from `start` to `end`, as they were at `at`."""

    start: datetime
    end: datetime
    at: datetime


def proof_after(previous: Proof | None, found: Proof, *, is_full: bool, differs: bool) -> Proof:
    """Return what is proven after a comparison that found equality from `found.start` to `found.end`.

    Only one that looks at everything (`is_full`) proves more than was proven: what a shorter one leaves out may have
    changed since. `differs`: behind `found.end` the totals are not equal, whatever was found before.
    """
    if previous is None or (is_full and (differs or found.end >= previous.end)):
        return found
    if differs and found.end < previous.end:
        return replace(previous, end=max(previous.start, found.end))
    return previous


def equal_until(parts: Iterable[Compared], span: Span) -> datetime:
    """Return the start of the first part that is not equal; the span's end if all are."""
    return min((part.span.start for part in parts if part.cause is not None), default=span.end)
