"""The state of one mode (test or live), and the totals read from it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from meterctl.sandbox.local_stripe.idempotency import IdempotencyKeys
from meterctl.sandbox.local_stripe.model import WINDOW_S, Customer, Formula, Meter, Price, StoredEvent
from meterctl.sandbox.local_stripe.rejections import AsyncRejection, RejectionScript

if TYPE_CHECKING:
    from meterctl.sandbox.local_stripe.events import SnapshotEvent, ThinEvent
    from meterctl.sandbox.local_stripe.subscription_documents import Subscription


class Books:
    """Everything one mode holds. Not thread-safe: the engine's lock guards it."""

    def __init__(self, *, livemode: bool) -> None:
        self.livemode = livemode
        self.customers: dict[str, Customer] = {}
        self.meters: dict[str, Meter] = {}
        self.active_meters: dict[str, str] = {}
        """event_name → id of the active meter."""
        self.prices: dict[str, Price] = {}
        self.events: list[StoredEvent] = []
        """In order of arrival."""
        self._identifiers: dict[str, datetime] = {}
        """identifier → when an event with it was last stored."""
        self.rejections: list[AsyncRejection] = []
        """Of events that were dropped after their 200."""
        self.unreported: list[AsyncRejection] = []
        """What no report has told of yet, false ones included."""
        self.rejection_script = RejectionScript()
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshots: list[SnapshotEvent] = []
        """Events of v1 in the order they came to be."""
        self.thin_events: list[ThinEvent] = []
        """Events of v2, the same."""
        self.keys = IdempotencyKeys()
        self._by_lane: dict[tuple[str, str], list[StoredEvent]] = defaultdict(list)
        self._ids: dict[str, int] = defaultdict(int)

    def new_id(self, prefix: str) -> str:
        """Return an id never given before, such as `mtr_test_sandbox000001`."""
        self._ids[prefix] += 1
        mode = "test_" if prefix in ("mtr_", "evt_") and not self.livemode else ""
        return f"{prefix}{mode}sandbox{self._ids[prefix]:06}"

    def put_customer(self, customer: Customer) -> None:
        """Add or replace a customer."""
        self.customers[customer.id] = customer

    def put_meter(self, meter: Meter) -> None:
        """Add or replace a meter; an active one is found by its event_name."""
        self.meters[meter.id] = meter
        if meter.active:
            self.active_meters[meter.event_name] = meter.id
        elif self.active_meters.get(meter.event_name) == meter.id:
            del self.active_meters[meter.event_name]

    def archived_meter(self, event_name: str) -> Meter | None:
        """Return the newest meter that took events of this name once."""
        return next((meter for meter in reversed(self.meters.values()) if meter.event_name == event_name), None)

    def active_meter(self, event_name: str) -> Meter | None:
        """Return the meter that takes events of this name."""
        meter_id = self.active_meters.get(event_name)
        return None if meter_id is None else self.meters[meter_id]

    def put_event(self, event: StoredEvent) -> None:
        """Store an event and remember its identifier."""
        self.events.append(event)
        self._identifiers[event.identifier] = event.received
        if event.meter_id:
            self._by_lane[event.meter_id, event.customer].append(event)

    def put_rejection(self, rejection: AsyncRejection, *, dropped: bool) -> None:
        """Keep what is to be reported of an event, and where it was dropped, that too."""
        self.unreported.append(rejection)
        if dropped:
            self.rejections.append(rejection)

    def stored_at(self, identifier: str) -> datetime | None:
        """Return when an event with this identifier was last stored."""
        return self._identifiers.get(identifier)

    def usage(self, meter: Meter, customer: str) -> list[StoredEvent]:
        """Return the events stored for a customer and meter, in order of arrival, replaced ones included."""
        return self._by_lane.get((meter.id, customer), [])

    def records(self) -> list[StoredEvent]:
        """Return all events in order of arrival, `counted` false also for those that a newer one replaced."""
        standing = {id(event) for lane in self._lanes() for event in standing_of(*lane)}
        return [event if id(event) in standing else replace(event, counted=False) for event in self.events]

    def totals(self) -> dict[tuple[str, str], Decimal]:
        """Return the exact total per (event_name, customer) by the meter's formula, whatever the lag."""
        totals: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        for meter, events in self._lanes():
            counting = standing_of(meter, events)
            if counting:
                totals[meter.event_name, counting[0].customer] += aggregate(counting, meter.formula)
        return dict(totals)

    def _lanes(self) -> Iterable[tuple[Meter, list[StoredEvent]]]:
        return ((self.meters[meter_id], events) for (meter_id, _), events in self._by_lane.items())


def standing_of(meter: Meter, events: Iterable[StoredEvent]) -> list[StoredEvent]:
    """Given one customer's events in order of arrival, return those that count.

    On a meter with `event_time_window` only the event received last stands for its UTC hour or day.
    """
    counted = [event for event in events if event.counted]
    if meter.event_time_window is None:
        return counted
    length_s = WINDOW_S[meter.event_time_window]
    last = {int(event.timestamp.timestamp()) // length_s: event for event in counted}
    return [event for event in counted if last[int(event.timestamp.timestamp()) // length_s] is event]


def aggregate(events: Iterable[StoredEvent], formula: Formula) -> Decimal:
    """Return sum, number, or last value (by timestamp; the later arrival among equals) of events in arrival order."""
    if formula == "count":
        return Decimal(sum(1 for _ in events))
    if formula == "sum":
        return sum((event.quantity for event in events), Decimal(0))
    last: StoredEvent | None = None
    for event in events:
        if last is None or event.timestamp >= last.timestamp:
            last = event
    return Decimal(0) if last is None else last.quantity
