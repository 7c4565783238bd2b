"""Stripe's events: its lists, and what is kept of them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from meterctl.core.stripe_event import StripeEvent


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
