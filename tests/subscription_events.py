"""Events of subscriptions as Stripe sends them, in the shape of its present API version or an older one."""

from typing import Any

from meterctl.core.stripe_event import StripeEvent, read_event

BASE = 1_795_000_000
"""Seconds that `at` is counted from; 2026-11-18T11:06:40Z."""

HOUR, DAY = 3600, 86400


def event(kind: str, body: dict[str, Any], *, at: int, id: str | None = None) -> StripeEvent:  # noqa: A002 -- Stripe's word
    """An event about an object. Its id tells its kind and second unless one is given."""
    document = {
        "id": id or f"evt_{kind.rpartition('.')[2]}_{at}",
        "object": "event",
        "type": kind,
        "created": BASE + at,
        "livemode": False,
        "api_version": "2026-10-28.endive",
        "data": {"object": body},
    }
    return read_event(document)


def subscription(status: str = "active", *, id: str = "sub_1", **values: Any) -> dict[str, Any]:  # noqa: A002 -- as above
    """A subscription in the present shape, with a metered item whose period is of a day."""
    return {
        "id": id,
        "object": "subscription",
        "customer": "cus_ada",
        "status": status,
        "created": BASE,
        "start_date": BASE,
        "ended_at": None,
        "canceled_at": None,
        "items": {"object": "list", "data": [item(0, DAY)]},
    } | values


def item(start: int, end: int, *, usage_type: str = "metered") -> dict[str, Any]:
    """A subscription item with its period, since 2025-03-31.basil."""
    return {
        "object": "subscription_item",
        "current_period_start": BASE + start,
        "current_period_end": BASE + end,
        "price": {"object": "price", "recurring": {"usage_type": usage_type}},
    }


def old_subscription(status: str = "active", **values: Any) -> dict[str, Any]:
    """A subscription as it was before: its period stands above the items."""
    items = {"data": [{"object": "subscription_item", "price": {"recurring": {"usage_type": "metered"}}}]}
    return subscription(status, items=items, current_period_start=BASE, current_period_end=BASE + DAY, **values)


def changed(status: str = "active", *, at: int, verb: str = "updated", **values: Any) -> StripeEvent:
    """The subscription as of a change."""
    known = {name: values.pop(name) for name in ("id",) if name in values}
    of = values.pop("of", "sub_1")
    return event(f"customer.subscription.{verb}", subscription(status, id=of, **values), at=at, **known)


def deleted(*, at: int, **values: Any) -> StripeEvent:
    """The subscription's end."""
    return changed("canceled", at=at, verb="deleted", **{"ended_at": BASE + at, **values})


def payment_failed(*, at: int, of: str | None = "sub_1", id: str | None = None) -> StripeEvent:  # noqa: A002 -- as above
    """An invoice that was not paid, in the present shape."""
    parent = {"type": "subscription_details", "subscription_details": {"subscription": of}} if of else None
    body = {"id": "in_1", "object": "invoice", "customer": "cus_ada", "parent": parent}
    return event("invoice.payment_failed", body, at=at, id=id)


def checkout(*, at: int, **values: Any) -> StripeEvent:
    """A completed checkout session of user ada."""
    body = {
        "id": "cs_1",
        "object": "checkout.session",
        "mode": "subscription",
        "customer": "cus_ada",
        "subscription": "sub_1",
        "client_reference_id": "ada",
        "metadata": {},
    }
    return event("checkout.session.completed", body | values, at=at)
