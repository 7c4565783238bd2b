"""The ledger's totals beside Stripe's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from meterctl.core.reconciliation import Difference, Proof, SpanBooks
from meterctl.core.spans import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedReading:
    """Stripe's totals by the start of their window; a window without usage may be left out."""

    totals: Mapping[datetime, Decimal]
    read_count: int
    customer_known: bool = True


class GroupedTotals(Protocol):
    """Stripe's summaries of one meter, several windows at once."""

    def grouped(self, customer: str, start: datetime, end: datetime, unit: timedelta | None) -> GroupedReading:
        """Return the totals of [start, end) by its hours or UTC days, on whose bounds it lies; by none: as one total.

        Each page is one read. Raises the MeterctlError that fits.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownCustomer:
    """A customer to compare, and up to where its totals are proven; None: never."""

    event_name: str
    customer: str
    proven_until: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What comparing one customer came to. `equal_until`: start of the first part that differs, or the span's end."""

    customer: str
    span: Span
    ledger_total: Decimal
    stripe_total: Decimal
    read_count: int
    differences: tuple[Difference, ...]
    equal_until: datetime
    read_at: datetime


class ReconciliationLedger(Protocol):
    """The ledger of one meter, as it is compared with Stripe's totals."""

    def customers(self, span: Span, only: Sequence[str]) -> list[KnownCustomer]:
        """Return the customers with any event in the span, or those that are named."""
        ...

    def books(
        self, customers: Sequence[str], span: Span, unit: timedelta, *, fresh_since: datetime
    ) -> Mapping[tuple[str, datetime], SpanBooks]:
        """Return what the ledger says by customer and start of the minute, hour or UTC day, cut at the span's ends."""
        ...

    def store(self, comparison: Comparison, *, is_full: bool) -> Proof:
        """Keep what was found; return what is proven of the customer now."""
        ...
