"""Old doubts, the totals that decide them, and what that comes to."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from meterctl.core.model import State
from meterctl.core.settlement import Books, HeldReason, Series, Verdict, Window


@dataclass(frozen=True, kw_only=True, slots=True)
class SettledEvent:
    """A doubt that is none any more.

    What is absent is pending again; expired if it is too old to be sent; rejected, under Stripe's `code`, if Stripe had
    reported it.
    """

    id: int
    source_row_id: str | None
    quantity: Decimal
    late: bool = False
    state: State = State.ACCEPTED
    code: str | None = None

    @property
    def expired(self) -> bool:
        """Whether it is too old to be sent again."""
        return self.state is State.EXPIRED

    @property
    def rejected(self) -> bool:
        """Whether Stripe rejected it after it had answered 200."""
        return self.state is State.REJECTED


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """What a series of reads came to: events Stripe has, events it has not, or why a person must say."""

    present: tuple[SettledEvent, ...] = ()
    absent: tuple[SettledEvent, ...] = ()
    held_reason: HeldReason | None = None
    held_ids: tuple[int, ...] = ()


class SettlementLedger(Protocol):
    """The old doubts of one meter, and the evidence that settles them."""

    def windows(self, now: datetime) -> list[Window]:
        """Return the customers and minutes whose doubts are old and whose next read may tell something."""
        ...

    def books(self, window: Window) -> Books:
        """Return what the ledger says of the window now."""
        ...

    def note(self, window: Window, total: Decimal, books: Books, *, read_at: datetime) -> Series:
        """Add a read to the window's series, or begin a new one where it differs; return the series."""
        ...

    def conclude(
        self, window: Window, series: Series, verdict: Verdict, books: Books, *, now: datetime, grace: timedelta
    ) -> Settled | None:
        """Write down what the series proves, unless the ledger has moved on since its first read: then return None."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Stripe's total for a customer and a range, as the double it sends. `stripe_date` is the answer's `Date`."""

    total: Decimal
    stripe_date: datetime | None


class Totals(Protocol):
    """Stripe's summaries of one meter."""

    def total(self, customer: str, start: datetime, end: datetime) -> Reading:
        """Return the total of [start, end), whole minutes. One read. Raises the MeterctlError that fits."""
        ...
