"""What the actions need from the outside, in the design's words. Adapters: `postgres`, `stripe_api`, `dispatch`."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from meterctl.core.meter_check import StripeMeter
from meterctl.core.model import Claim, Heard, MeterEvent, Outcome, State
from meterctl.core.reconciliation import Difference, Proof, SpanBooks
from meterctl.core.scope import Scope, UsageSpan
from meterctl.core.settlement import Books, HeldReason, Series, Verdict, Window
from meterctl.core.spans import Span
from meterctl.core.state import Transition
from meterctl.core.stripe_event import StripeEvent


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest:
    """What to claim: events by id that wait for another attempt, then at most `fresh_max` this run has not tried.

    Those come one per lane: from the lanes of `customers`, then from as many as it takes of the next `scan_max` lanes
    behind `after_customer`.
    """

    fresh_max: int
    customers: tuple[str, ...]
    scan_max: int
    after_customer: str
    retry_ids: tuple[int, ...]
    now: datetime
    doubt_since: datetime
    doubt_horizon: datetime
    expired_before: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """Claims granted, and the lane that the scan reached.

    `lost_race`: another run claimed a lane at the same time, so nothing was granted this time. `recorded_ids`: events
    whose answers were written down; what became of the others, another run has written.
    """

    claims: tuple[Claim, ...] = ()
    after_customer: str = ""
    scan_ended: bool = True
    lost_race: bool = False
    recorded_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenCounts:
    """What is left of a meter: held up by a doubt, some of that for a person, and due but not tried by this run."""

    held_count: int
    problem_count: int
    problem_ids: tuple[str, ...]
    untried_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Undeliverable:
    """Open events of an event_name that no enabled meter has."""

    event_name: str
    event_count: int
    sample_ids: tuple[str, ...]


class MeterLedger(Protocol):
    """The ledger of one meter, as one run sees it."""

    def take_over(self) -> int:
        """Turn other runs' `sending` into `in_doubt`; the caller holds the meter's lock."""
        ...

    def expire(self, *, expired_before: datetime) -> list[str]:
        """Expire what was never processed and is too old now; return the rows' ids."""
        ...

    def supersede(self) -> int:
        """Give up what a newer level of its period has made worthless; return how many events."""
        ...

    def stamp(self, row_ids: Sequence[str], *, now: datetime) -> int:
        """Stamp usage rows whose event is accepted; locked rows are left for later. Return how many were stamped."""
        ...

    def oldest_lanes(self, lanes_max: int, *, doubt_horizon: datetime) -> list[str]:
        """Return the customers whose events have waited longest, at most `lanes_max`, longest first."""
        ...

    def exchange(
        self, answers: Sequence[tuple[Heard, Transition]], request: ClaimRequest | None, *, now: datetime
    ) -> Claimed:
        """Record answers, stamp accepted rows and claim what is next: one transaction."""
        ...

    def untold(self) -> list[KindCount]:
        """Return what runs rejected, let expire or sent late that did not live to say so."""
        ...

    def count_open(self, *, now: datetime) -> OpenCounts:
        """Return what a run leaves open."""
        ...


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


class MeterCatalog(Protocol):
    """Stripe's meters, and what they cost."""

    def meters(self) -> list[StripeMeter]:
        """Return all meters, deactivated ones too. Raises the MeterctlError that fits."""
        ...

    def is_priced(self, meter_id: str) -> bool:
        """Return whether an active price is linked to the meter. Raises the MeterctlError that fits."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Acted:
    """An event of Stripe's and what was done about it: received, processed, ignored or failed. `was_done`: before."""

    event: StripeEvent
    status: str
    outcome: str | None = None
    at: datetime | None = None
    was_done: bool = False


class StripeEventStore(Protocol):
    """Stripe's events, each once."""

    def store(self, events: Sequence[StripeEvent], *, source: str) -> list[str]:
        """Keep events; return the ids of those that are new."""
        ...

    def read(self, event_id: str) -> Acted:
        """Return an event, and what was done about it."""
        ...

    def act(self, event: StripeEvent, effect: Callable[[StripeEvent], tuple[str, str]], *, again: bool) -> Acted:
        """Carry out `effect` (event → status, outcome) and mark the event, in one transaction; what is done stays."""
        ...

    def fail(self, event_id: str, error: str, *, again: bool) -> None:
        """Note why acting on an event failed."""
        ...

    def cursors(self, account: str, *, livemode: bool) -> dict[str, datetime]:
        """Return up to when Stripe's lists were read, by type of event."""
        ...

    def advance(self, types: Collection[str], read_until: datetime, account: str, *, livemode: bool) -> None:
        """Note up to when Stripe's lists were read."""
        ...


class StripeEventLists(Protocol):
    """Stripe's lists of its events of the last 30 days, newest first."""

    def pages(self, types: Collection[str], since: datetime) -> Iterator[list[StripeEvent]]:
        """Yield the events created since then, page by page. Raises the MeterctlError that fits."""
        ...


class MeterEvents(Protocol):
    """Stripe's side: one event a call."""

    def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
        """Send the event once and say what came of it. Never raises for anything the far side or the network does."""
        ...


class Dispatcher(Protocol):
    """Carries out claims, perhaps many at a time."""

    @property
    def outstanding(self) -> int:
        """How many submitted claims have not been handed back by `heard`."""
        ...

    def submit(self, claims: Sequence[Claim], *, claimed_elapsed_s: float, claimed_wall_s: float) -> None:
        """Queue claims; the clock readings were taken before they were committed."""
        ...

    def heard(self, *, timeout_s: float) -> list[Heard]:
        """Return the outcomes that are in, waiting at most `timeout_s` for the first."""
        ...

    def cancel_queued(self) -> None:
        """Send nothing more: claims not under way come back from `heard` as not sent."""
        ...


class Lock(Protocol):
    """The lock of the meter being worked on."""

    def keep(self) -> None:
        """Keep it. Raises UnavailableError when it is lost."""
        ...


@dataclass(slots=True)
class StopRequest:
    """Set by a signal: finish what is in flight, start nothing new."""

    signal_number: int | None = field(default=None)

    @property
    def requested(self) -> bool:
        """Whether somebody asked us to stop."""
        return self.signal_number is not None
