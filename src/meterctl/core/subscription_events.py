"""Reading what an event tells of a subscription, in the shapes of Stripe's older and newer API versions.

Since 2025-03-31.basil a subscription's period stands on its items, and an invoice names its subscription under `parent`
(Stripe's changelog); both stood directly on the object before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meterctl.core.stripe_event import StripeEvent, object_in, text_in
from meterctl.core.subscription import ENDED, Checkout, Facts, PaymentFailed, Snapshot
from meterctl.errors import InputError

CHECKOUT = "checkout.session.completed"
CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"
DELETED = "customer.subscription.deleted"
PAYMENT_FAILED = "invoice.payment_failed"
SUBSCRIPTION_TYPES = frozenset({CHECKOUT, CREATED, UPDATED, DELETED, PAYMENT_FAILED})
"""Types of events that tell something of a subscription."""

_Bounds = tuple[datetime | None, datetime | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What one event tells of one subscription."""

    subscription: str
    facts: Facts


def told_by(event: StripeEvent) -> Told | None:
    """Return what an event of SUBSCRIPTION_TYPES tells, or None if it is not about a subscription.

    Raises InputError naming what its payload lacks.
    """
    about = _Object(event, object_in(object_in(event.payload, "data"), "object"))
    if event.type == CHECKOUT:
        return _checkout(about)
    return _payment_failed(about) if event.type == PAYMENT_FAILED else _snapshot(about)


class _Object:
    """The object that an event is about. What is asked for and missing, or of another type, is an InputError."""

    def __init__(self, event: StripeEvent, values: Mapping[str, Any]) -> None:
        self.event = event
        self.values = values

    def text(self, key: str) -> str:
        found = self.text_or_none(key)
        if found is None:
            raise self._lacking(key)
        return found

    def text_or_none(self, key: str) -> str | None:
        return text_in(self.values, key)

    def instant(self, key: str) -> datetime:
        found = self.instant_or_none(key)
        if found is None:
            raise self._lacking(key)
        return found

    def instant_or_none(self, key: str) -> datetime | None:
        """Return Unix seconds as an instant."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._lacking(key)
        try:
            return datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise self._lacking(key) from error

    def _lacking(self, key: str) -> InputError:
        return InputError(
            f"{self.event.id}: its object has no {key} that could be read", hint="look at it: meterctl webhooks show"
        )


def _checkout(about: _Object) -> Told | None:
    subscription = about.text_or_none("subscription")
    if about.values.get("mode") != "subscription" or subscription is None:
        return None
    metadata = object_in(about.values, "metadata")
    checkout = Checkout(
        created=about.event.created,
        event_id=about.event.id,
        customer=about.text("customer"),
        reference=about.text_or_none("client_reference_id"),
        user=text_in(metadata, "user_id"),
        organization=text_in(metadata, "organization_id"),
    )
    return Told(subscription=subscription, facts=Facts(checkout=checkout))


def _payment_failed(about: _Object) -> Told | None:
    details = object_in(object_in(about.values, "parent"), "subscription_details")
    subscription = text_in(details, "subscription") or about.text_or_none("subscription")
    if subscription is None:
        return None
    failed = PaymentFailed(created=about.event.created, event_id=about.event.id, customer=about.text("customer"))
    return Told(subscription=subscription, facts=Facts(payment_failed=failed))


def _snapshot(about: _Object) -> Told:
    status, ended_at = about.text("status"), about.instant_or_none("ended_at")
    if about.event.type == DELETED and status not in ENDED:
        status = ENDED[0]
    if status in ENDED and ended_at is None:
        ended_at = about.event.created  # not canceled_at: that may be when somebody asked for an end to come
    period_start, period_end = _period(about)
    snapshot = Snapshot(
        created=about.event.created,
        event_id=about.event.id,
        customer=about.text("customer"),
        status=status,
        started_at=about.instant_or_none("start_date") or about.instant("created"),
        ended_at=ended_at,
        period_start=period_start,
        period_end=period_end,
    )
    return Told(subscription=about.text("id"), facts=Facts(snapshot=snapshot))


def _period(about: _Object) -> _Bounds:
    """Return the bounds of the period that metered usage is billed in, the earliest to end if there are several."""
    items = [_Object(about.event, item) for item in _items(about.values)]
    metered = [item for item in items if _is_metered(item.values)]
    bounds = [_bounds(item) for item in metered or items]
    ends = [(end, start) for start, end in bounds if end is not None]
    if not ends:
        return _bounds(about)
    end, start = min(ends, key=lambda pair: pair[0])
    return start, end


def _bounds(about: _Object) -> _Bounds:
    return about.instant_or_none("current_period_start"), about.instant_or_none("current_period_end")


def _items(subscription: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    listed = object_in(subscription, "items").get("data")
    yield from (item for item in (listed if isinstance(listed, list) else ()) if isinstance(item, Mapping))


def _is_metered(item: Mapping[str, Any]) -> bool:
    return object_in(object_in(item, "price"), "recurring").get("usage_type") == "metered"
