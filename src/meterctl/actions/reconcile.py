"""Reconcile: Stripe's totals beside the ledger's. What a difference means is in `core/reconciliation.py`.

Stripe is asked first and the ledger after it: what is sent in between is in the ledger, and too fresh to be missed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import reduce
from operator import add

from meterctl.actions.narrowing import Narrowing
from meterctl.actions.reading_plan import ReadingPlan, full_from
from meterctl.clock import Clock
from meterctl.core.reconciliation import SUMMARY_LAG, Cause, Compared, Difference, SpanBooks, compared, equal_until
from meterctl.core.spans import DAY, Question, Span, cells, questions
from meterctl.errors import MeterctlError, RefusedError, UnavailableError
from meterctl.logs import get_logger
from meterctl.ports import Comparison, GroupedTotals, KnownCustomer, ReconciliationLedger

FAILED_IN_A_ROW_MAX = 3
"""So many reads of a meter in a row that fail are Stripe's fault, not that of one customer."""

log = get_logger()


@dataclass(kw_only=True, slots=True)
class MeterSide:
    """One meter's two sets of books, and what comparing them came to.

    `left_count`: customers not read. `unknown`: customers that Stripe does not know.
    """

    event_name: str
    ledger: ReconciliationLedger
    totals: GroupedTotals
    comparisons: list[Comparison] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    left_count: int = 0
    read_count: int = 0
    late_count: int = 0
    late_units: Decimal = Decimal(0)
    error: MeterctlError | None = None
    failed_in_a_row: int = 0

    @property
    def differences(self) -> list[Difference]:
        """Everything that is not equal."""
        return [difference for comparison in self.comparisons for difference in comparison.differences]

    @property
    def gave_up(self) -> bool:
        """Whether it makes no sense to ask for more of this meter."""
        hopeless = self.error is not None and not isinstance(self.error, UnavailableError)
        return hopeless or self.failed_in_a_row >= FAILED_IN_A_ROW_MAX


BooksByStart = Mapping[tuple[str, datetime], SpanBooks]
"""The ledger's books by customer and start of a window; none where there is no event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """Stripe's totals of one customer by cell. `customer_known`: Stripe has the customer."""

    event_name: str
    customer: str
    totals: Mapping[Span, Decimal]
    read_count: int
    customer_known: bool


@dataclass(kw_only=True, slots=True)
class Reconciliation:
    """Comparing meters; no lock is needed, for it changes no event. `sides` by event_name."""

    sides: Mapping[str, MeterSide]
    plan: ReadingPlan
    clock: Clock
    may_go_on: Callable[[], bool]
    _reads_left: int = 0
    _started_at: datetime = field(init=False)

    def run(self) -> None:
        """Read, compare, narrow and keep; what came of it is in `sides`, errors of Stripe's as well."""
        self._started_at = self.clock.now()
        self._reads_left = self.plan.reads_max
        for customer in self.plan.left:
            self.sides[customer.event_name].left_count += 1
        read = [found for one in self.plan.chosen if (found := self._days(one)) is not None]
        for side in self.sides.values():
            of_side = [one for one in read if one.event_name == side.event_name]
            if of_side:
                self._compare(side, of_side)

    def _days(self, one: KnownCustomer) -> _Read | None:
        """Return Stripe's totals by day; None if they cannot be read, which is noted."""
        side = self.sides[one.event_name]
        before = side.read_count
        totals: dict[Span, Decimal] = {}
        known = True
        for question in questions(self.plan.span, DAY):
            answer = self._asked(side, one.customer, question)
            if answer is None:
                side.left_count += 1
                return None
            found, customer_known = answer
            totals |= found
            known = known and customer_known
        side.unknown += [] if known else [one.customer]
        return _Read(
            event_name=one.event_name,
            customer=one.customer,
            totals=totals,
            read_count=side.read_count - before,
            customer_known=known,
        )

    def _narrowing(self, side: MeterSide, customer: str) -> Narrowing:
        def ask(asked: Sequence[Question]) -> dict[Span, Decimal] | None:
            if self._reads_left < sum(question.read_count for question in asked):
                return None
            answers = [self._asked(side, customer, question) for question in asked]
            found = [answer[0] for answer in answers if answer is not None]
            return {span: total for totals in found for span, total in totals.items()} if None not in answers else None

        def books(span: Span, unit: timedelta) -> dict[datetime, SpanBooks]:
            return {start: part for (_, start), part in self._books(side, [customer], span, unit).items()}

        return Narrowing(ask=ask, books=books)

    def _asked(self, side: MeterSide, customer: str, question: Question) -> tuple[dict[Span, Decimal], bool] | None:
        """Ask Stripe; return total by cell, and whether it knows the customer. None: not now."""
        if side.gave_up or not self.may_go_on() or self._reads_left < question.read_count:
            return None
        span, unit = question.span, question.unit
        self._reads_left -= 1
        side.read_count += 1
        try:
            answer = side.totals.grouped(customer, span.start, span.end, unit)
        except MeterctlError as error:
            side.error = error
            side.failed_in_a_row = 0 if isinstance(error, RefusedError) else side.failed_in_a_row + 1
            log.warning("totals_not_read", event_name=side.event_name, customer=customer, error=error.message)
            return None
        side.failed_in_a_row = 0
        self._reads_left -= answer.read_count - 1
        side.read_count += answer.read_count - 1
        parts = [span] if unit is None else cells(span, unit)
        return {part: answer.totals.get(part.start, Decimal(0)) for part in parts}, answer.customer_known

    def _books(self, side: MeterSide, customers: Sequence[str], span: Span, unit: timedelta) -> BooksByStart:
        return side.ledger.books(customers, span, unit, fresh_since=self._started_at - SUMMARY_LAG)

    def _compare(self, side: MeterSide, read: Sequence[_Read]) -> None:
        books = self._books(side, [one.customer for one in read], self.plan.span, DAY)
        found = [(one, self._days_compared(one, books)) for one in read]
        for one, days in found:
            side.late_count += sum(day.books.late_count for day in days)
            side.late_units += sum((day.books.late_units for day in days), Decimal(0))
            self._keep(side, one, days)

    def _days_compared(self, one: _Read, books: BooksByStart) -> list[Compared]:
        return [
            compared(span, total, books.get((one.customer, span.start), SpanBooks()))
            for span, total in sorted(one.totals.items())
        ]

    def _keep(self, side: MeterSide, one: _Read, days: Sequence[Compared]) -> None:
        before = side.read_count
        differing = [day for day in days if day.cause is not None]
        if one.customer_known:
            narrowing = self._narrowing(side, one.customer)
            differing = [part for day in differing for part in narrowing.smallest(day)]
        elif differing:
            books = reduce(add, (day.books for day in days), SpanBooks())
            differing = [compared(self.plan.span, Decimal(0), books)]
        comparison = Comparison(
            customer=one.customer,
            span=self.plan.span,
            ledger_total=sum((day.books.accepted for day in days), Decimal(0)),
            stripe_total=sum((day.stripe_total for day in days), Decimal(0)),
            read_count=one.read_count + side.read_count - before,
            differences=tuple(_difference(side, one, part) for part in differing),
            equal_until=equal_until(days, self.plan.span),
            read_at=self._started_at,
        )
        side.ledger.store(comparison, is_full=self.plan.span.start <= full_from(self._started_at))
        side.comparisons.append(comparison)


def _difference(side: MeterSide, one: _Read, part: Compared) -> Difference:
    return Difference(
        event_name=side.event_name,
        customer=one.customer,
        span=part.span,
        ledger_total=part.books.accepted,
        stripe_total=part.stripe_total,
        cause=part.cause if one.customer_known and part.cause else Cause.UNKNOWN_CUSTOMER,
    )
