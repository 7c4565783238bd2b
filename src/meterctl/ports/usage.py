"""What usage is read as, and collected into."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from meterctl.core.scope import Scope, UsageSpan


@dataclass(frozen=True, kw_only=True, slots=True)
class PageKey:
    """Where a page of rows ended: go on behind it. Without `row_id`: before the first row that has no time.

    `occurred_at` is what the column holds: local time where the column's type has no time zone.
    """

    occurred_at: datetime | None
    row_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class KindCount:
    """Events or rows of one kind, `late_count` of them after their invoice was final.

    `outcome` is pending, rejected, expired, skipped, held, conflict, known, newer, before_since or refused. What is
    refused cannot be sent as it is, and is not in the ledger: the next run looks at it again.
    Uncounted: a place whose usage never reaches the source.
    """

    outcome: str
    code: str | None
    event_count: int
    units: Decimal
    sample_ids: tuple[str, ...] = ()
    customer_count: int = 0
    oldest: datetime | None = None
    late_count: int = 0

    @property
    def problem_code(self) -> str:
        """What a person reads: the code, or where an expiry has Stripe's name for it, still `expired`."""
        return self.outcome if self.outcome == "expired" else self.code or self.outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What collecting one page of rows did. `next_key` is None behind the last page."""

    next_key: PageKey | None
    unstamped_row_ids: tuple[str, ...]
    kinds: tuple[KindCount, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowWindow:
    """Which rows a run looks at. Both ends are inclusive; rows between `expired_before` and `fresh_from` wait a little.

    `span` is what the run is confined to, if it is: then rows without a time are not looked at either. `as_of` is the
    run's instant, where that is not `until`.
    """

    since: datetime
    until: datetime
    fresh_from: datetime
    expired_before: datetime
    row_ids: tuple[str, ...] = ()
    span: UsageSpan | None = None
    as_of: datetime | None = None

    @property
    def now(self) -> datetime:
        """The run's instant."""
        return self.as_of or self.until

    @property
    def scope(self) -> Scope:
        """Which of the ledger's events belong to it."""
        return Scope(row_ids=self.row_ids, span=self.span)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Usage that no event stands for, that of free users and of open windows among it."""

    row_count: int
    oldest: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanCounts:
    """Rows, or events, of a span that nothing need or can be done about: Stripe has them, or takes them no more."""

    reported: int
    too_old: int


class UsageSource(Protocol):
    """The usage of one meter: rows, a level, or what was counted."""

    def collect(
        self, window: RowWindow, after: PageKey | None, *, batch_size: int, now: datetime, room: int | None = None
    ) -> Page:
        """Turn the next page of usage into ledger events, at most `room` of them to be sent, in one transaction."""
        ...

    def preview(
        self, window: RowWindow, *, doubt_horizon: datetime, late_before: datetime | None = None
    ) -> list[KindCount]:
        """Return what collecting and delivering everything would do; writes nothing.

        `late_before`: events whose period ended before it are counted as late.
        """
        ...

    def span_counts(self, window: RowWindow) -> SpanCounts:
        """Return what of the window's span is reported, and what is not and lies before `fresh_from`."""
        ...

    def count_uncollected(self, window: RowWindow, after: PageKey | None) -> int:
        """Return how many rows, or events to be, wait behind the key."""
        ...

    def backlog(self, window: RowWindow) -> Backlog | None:
        """Return what no event stands for yet; None for a level."""
        ...

    def not_to_report(self, window: RowWindow) -> list[str]:
        """Return which of the window's `row_ids` no run would look at."""
        ...
