"""Stripe's events: read its lists into the store, and act on what is stored, each event once."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from meterctl.core.stripe_event import DONE, EARLIEST, StripeEvent
from meterctl.errors import InputError, RefusedError, UnavailableError
from meterctl.logs import get_logger
from meterctl.ports import Acted, StripeEventLists, StripeEventStore

LISTED_FOR = timedelta(days=30)
"""How long an event stays in Stripe's lists (OpenAPI, `GET /v1/events`)."""

OVERLAP = timedelta(days=1)
"""How far behind its cursor a pull begins: the lists lag, and nobody says how long."""

IN_A_ROW_MAX = 3
"""So many events in a row that must wait are the fault of what they wait for, not theirs."""

Handler = Callable[[StripeEvent], str]
"""Event → what it came to, within the transaction that marks it."""

log = get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """What reading the lists brought. `gap`: a span, older than what is listed, whose events nobody has read."""

    new_count: int
    known_count: int
    gap: tuple[datetime, datetime] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """Reads Stripe's lists from where the last pull ended. One that dies has stored what it read; the next reads on."""

    store: StripeEventStore
    lists: StripeEventLists
    account: str
    livemode: bool

    def run(self, types: Collection[str], *, now: datetime, since: datetime | None = None) -> Pulled:
        """Store what was created since the types' cursors, or since the instant. Raises the MeterctlError that fits."""
        oldest = now - LISTED_FOR
        cursors = self.store.cursors(self.account, livemode=self.livemode)
        reached = min((cursors.get(one, oldest) for one in types), default=oldest)
        start = max(since or reached - OVERLAP, oldest)
        new_count = known_count = 0
        for page in self.lists.pages(types, start):
            stored = self.store.store([self._owned(event) for event in page], source="pull")
            new_count += len(stored)
            known_count += len(page) - len(stored)
        if since is None:
            self.store.advance(types, now, self.account, livemode=self.livemode)
        gap = (reached, oldest) if since is None and reached < oldest else None
        return Pulled(new_count=new_count, known_count=known_count, gap=gap)

    def _owned(self, event: StripeEvent) -> StripeEvent:
        """Events of the key's own account do not say whose they are; a copy of this database must know it."""
        return event if event.account else replace(event, account=self.account)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventActions:
    """Acts on stored events. `prepare` may ask Stripe: it is called while no transaction is open.

    `account` None: not known, so not compared.
    """

    store: StripeEventStore
    handlers: Mapping[str, Handler]
    prepare: Callable[[StripeEvent], StripeEvent]
    account: str | None
    livemode: bool

    def foreign(self, event: StripeEvent) -> str | None:
        """Return why an event is not for this ledger, if it is not."""
        if event.livemode is not self.livemode:
            return f"of {'live' if event.livemode else 'test'} mode"
        if event.account is not None and self.account is not None and event.account != self.account:
            return f"of account {event.account}"
        return None

    def would(self, found: Acted, *, again: bool) -> str:
        """Return what acting on an event would come to."""
        if found.status in DONE and not again:
            return "skipped"
        if self.foreign(found.event) is not None:
            return "refused"
        return "processed" if found.event.type in self.handlers else "ignored"

    def act(self, event_id: str, *, again: bool = False, strict: bool = False) -> Acted:
        """Act on an event, unless that was done before; return what it came to.

        What is not for this ledger is ignored for good, or, if `strict`, refused and left as it is. An event that
        cannot be read or acted on is marked as failed, whatever the reason. Raises UnavailableError where Stripe or
        PostgreSQL is away: the event stays as it was.
        """
        try:
            found = self.store.read(event_id)
        except InputError as error:
            return self._failed(self._unreadable(event_id), error, again=again)
        if found.status in DONE and not again:
            return Acted(event=found.event, status=found.status, at=found.at, was_done=True)
        if strict and (foreign := self.foreign(found.event)) is not None:
            return Acted(event=found.event, status="refused", outcome=foreign)
        try:
            return self._act(found.event, again=again)
        except RefusedError as error:
            return self._failed(found.event, error, again=again)
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 -- a payload of any shape, and an application's own triggers
            return self._failed(found.event, error, again=again)

    def _act(self, event: StripeEvent, *, again: bool) -> Acted:
        handler = self.handlers.get(event.type)
        if (foreign := self.foreign(event)) is not None:
            return self.store.act(event, lambda _: ("ignored", foreign), again=again)
        if handler is None:
            log.info("event_not_handled", event_id=event.id, type=event.type)
            return self.store.act(event, lambda _: ("ignored", "not handled"), again=again)
        return self.store.act(self.prepare(event), lambda whole: ("processed", handler(whole)), again=again)

    def _unreadable(self, event_id: str) -> StripeEvent:
        return StripeEvent(id=event_id, type="unreadable", created=EARLIEST, livemode=self.livemode, payload={})

    def _failed(self, event: StripeEvent, error: Exception, *, again: bool) -> Acted:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.error("event_failed", event_id=event.id, type=event.type, error=message)
        self.store.fail(event.id, message, again=again)
        return Acted(event=event, status="failed", outcome=message)


@dataclass(kw_only=True, slots=True)
class Acting:
    """Acts on several events. `left_count`: those that wait, because of `unavailable` or of a signal."""

    actions: EventActions
    may_go_on: Callable[[], bool]
    tell: Callable[[Acted], None]
    left_count: int = 0
    unavailable: UnavailableError | None = None
    _in_a_row: int = 0

    def run(self, event_ids: Iterable[str], *, again: bool = False, strict: bool = False) -> None:
        """Act on each. One that must wait is left; after three in a row all are."""
        for event_id in event_ids:
            if self._in_a_row >= IN_A_ROW_MAX or not self.may_go_on():
                self.left_count += 1
                continue
            try:
                acted = self.actions.act(event_id, again=again, strict=strict)
            except UnavailableError as error:
                self._in_a_row, self.unavailable = self._in_a_row + 1, error
                self.left_count += 1
                continue
            self._in_a_row = 0
            self.tell(acted)
