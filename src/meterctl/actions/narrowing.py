"""Narrowing a difference of a day to its hours, and those to minutes by halves: few reads, for Stripe allows few."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import reduce
from operator import add

from meterctl.core.reconciliation import Cause, Compared, SpanBooks, compared
from meterctl.core.settlement import MINUTE
from meterctl.core.spans import HOUR, Question, Span, halves, questions


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrowing:
    """Looks closer at one customer.

    `ask` returns Stripe's totals by span; None if they cannot be read, or the reads do not suffice. `books` returns the
    ledger's by start of the hour or minute, read after Stripe's.
    """

    ask: Callable[[Sequence[Question]], Mapping[Span, Decimal] | None]
    books: Callable[[Span, timedelta], Mapping[datetime, SpanBooks]]

    def smallest(self, whole: Compared) -> list[Compared]:
        """Return the smallest parts that differ, as far as the reads suffice; what is explained needs no reads."""
        if whole.cause is None:
            return []
        if whole.cause.explains:
            return [whole]
        if whole.span.length <= MINUTE:
            return [self._by_itself(whole)]
        parts = self._hours(whole) if whole.span.length > HOUR else self._halves(whole)
        if parts is None:
            return [whole]
        return [smaller for part in parts for smaller in self.smallest(part)] or [_moved(whole)]

    def _hours(self, day: Compared) -> list[Compared] | None:
        totals = self.ask(questions(day.span, HOUR))
        if totals is None:
            return None
        books = self.books(day.span, HOUR)
        return [compared(span, total, books.get(span.start, SpanBooks())) for span, total in sorted(totals.items())]

    def _halves(self, whole: Compared) -> list[Compared] | None:
        """Read one half; the other half's total is the rest."""
        first, second = halves(whole.span)
        totals = self.ask([Question(span=first, unit=None)])
        if totals is None:
            return None
        books = self.books(whole.span, MINUTE)
        rest = whole.stripe_total - totals[first]
        return [
            compared(first, totals[first], _within(first, books)),
            compared(second, rest, _within(second, books), tolerance=whole.tolerance, derived=True),
        ]

    def _by_itself(self, minute: Compared) -> Compared:
        """Return the minute as it is when it is read by itself: the totals it is the rest of may have moved."""
        totals = self.ask([Question(span=minute.span, unit=None)]) if minute.derived else None
        if totals is None:
            return minute
        again = compared(minute.span, totals[minute.span], _within(minute.span, self.books(minute.span, MINUTE)))
        return _moved(minute) if again.cause is None else again


def _within(span: Span, books: Mapping[datetime, SpanBooks]) -> SpanBooks:
    return reduce(add, (part for start, part in books.items() if span.start <= start < span.end), SpanBooks())


def _moved(part: Compared) -> Compared:
    """Return a part that differed at first and is equal by now: Stripe's totals moved while they were read."""
    return replace(part, cause=Cause.NOT_YET_CAUGHT_UP)
