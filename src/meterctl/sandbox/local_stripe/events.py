"""What happened at Stripe, as it is told: snapshot events of v1, which carry the object, and thin ones of v2.

`emitted` is when an event came to be by the sandbox's clock, which lists lag behind; `created` is what it says itself.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from meterctl.sandbox.local_stripe.model import Json, iso_ms
from meterctl.sandbox.local_stripe.options import StripeOptions

API_VERSION = "2026-10-28.endive"
"""Version that stripe-python 16.1.0 pins; told where the caller names none."""

KEPT = timedelta(days=30)
"""How far back events can be listed and retrieved (OpenAPI)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotEvent:
    """An event of v1: `object` as it was then, rendered in `api_version`."""

    id: str
    type: str
    object: Json
    previous: Json | None
    created: datetime
    emitted: datetime
    api_version: str
    livemode: bool

    def document(self) -> Json:
        """Return the API's event (OpenAPI `event`). The request is null: nothing of it is a caller's doing."""
        changed = {} if self.previous is None else {"previous_attributes": self.previous}
        return {
            "id": self.id,
            "object": "event",
            "api_version": self.api_version,
            "created": int(self.created.timestamp()),
            "data": {"object": self.object, **changed},
            "livemode": self.livemode,
            "pending_webhooks": 0,
            "request": {"id": None, "idempotency_key": None},
            "type": self.type,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RelatedObject:
    """What a thin event is about, to be fetched at `url`."""

    id: str
    type: str
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinEvent:
    """An event of v2: a notification, with `data` for who fetches it."""

    id: str
    type: str
    data: Json
    related: RelatedObject | None
    created: datetime
    emitted: datetime
    livemode: bool

    def document(self, *, with_data: bool) -> Json:
        """Return the API's event (OpenAPI `v2.core.event`); without data it is the notification."""
        related = {} if self.related is None else {"related_object": asdict(self.related)}
        return {
            "id": self.id,
            "object": "v2.core.event",
            "created": iso_ms(self.created),
            "livemode": self.livemode,
            "type": self.type,
            **related,
            **({"data": self.data} if with_data else {}),
        }


class _Event(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def created(self) -> datetime: ...
    @property
    def emitted(self) -> datetime: ...


AnyEvent = TypeVar("AnyEvent", bound=_Event)


def is_kept(event: _Event, now: datetime) -> bool:
    """Whether an event can still be had."""
    return now - event.created <= KEPT


def listed(events: Sequence[AnyEvent], now: datetime, options: StripeOptions) -> list[AnyEvent]:
    """Given events in the order they came to be, return those that a list shows, newest first.

    By seed, each is late by a time of its own, and those of one second come in any order, the same each time.
    """
    seed = options.event_list_seed
    shown = [event for event in reversed(events) if is_kept(event, now) and event.emitted + _lag(event, options) <= now]
    if seed is None:
        return sorted(shown, key=lambda event: event.created, reverse=True)
    return sorted(shown, key=lambda event: (-int(event.created.timestamp()), _drawn(f"{seed}/order/{event.id}")))


def _lag(event: _Event, options: StripeOptions) -> timedelta:
    seed = options.event_list_seed
    return timedelta(seconds=options.event_list_lag_s * (1 if seed is None else _drawn(f"{seed}/lag/{event.id}")))


def _drawn(name: str) -> float:
    return random.Random(name).random()  # noqa: S311  # repeatable by seed, nothing secret


Bounds = Mapping[str, datetime]
"""Any of gt, gte, lt, lte."""


def is_within(instant: datetime, bounds: Bounds) -> bool:
    """Whether an instant keeps to all bounds."""
    return (
        ("gt" not in bounds or instant > bounds["gt"])
        and ("gte" not in bounds or instant >= bounds["gte"])
        and ("lt" not in bounds or instant < bounds["lt"])
        and ("lte" not in bounds or instant <= bounds["lte"])
    )
