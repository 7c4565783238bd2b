"""The life of a subscription, as far as its events tell it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from meterctl.sandbox.local_stripe.emission import emit
from meterctl.sandbox.local_stripe.errors import invalid, no_such
from meterctl.sandbox.local_stripe.events import SnapshotEvent
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books
from meterctl.sandbox.local_stripe.subscription_documents import Subscription, checkout_document, invoice_document

PERIOD = timedelta(days=30)
"""How long a period is where nobody says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """How a subscription begins; what is None follows from the others and from now."""

    customer: str
    subscription_id: str | None = None
    status: str = "active"
    start_date: datetime | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def create_subscription(books: Books, start: Start, context: Context) -> Subscription:
    """Add a subscription and tell of it; raise the Refusal of an id that is taken."""
    subscription_id = start.subscription_id or books.new_id("sub_")
    if subscription_id in books.subscriptions:
        raise invalid("Subscription already exists.", code="resource_already_exists", param="id")
    start_date = start.start_date or context.now
    period_start = start.period_start or start_date
    subscription = Subscription(
        id=subscription_id,
        item_id=books.new_id("si_"),
        customer=start.customer,
        status=start.status,
        created=context.now,
        start_date=start_date,
        period_start=period_start,
        period_end=start.period_end or period_start + PERIOD,
        ended_at=None,
        metadata=start.metadata,
        livemode=books.livemode,
    )
    books.subscriptions[subscription.id] = subscription
    emit(books, "customer.subscription.created", _document(subscription, context), context)
    return subscription


def update_subscription(
    books: Books,
    subscription_id: str,
    context: Context,
    *,
    status: str | None = None,
    period_start: datetime | None = None,
    period_end: datetime | None = None,
) -> SnapshotEvent:
    """Change a subscription that has not ended, and tell of it with what was before."""
    before = _live(books, subscription_id)
    after = replace(
        before,
        status=status or before.status,
        period_start=period_start or before.period_start,
        period_end=period_end or before.period_end,
    )
    books.subscriptions[subscription_id] = after
    old, new = _document(before, context), _document(after, context)
    previous = {name: old[name] for name in new if old[name] != new[name]}
    return emit(books, "customer.subscription.updated", new, context, previous=previous)


def end_subscription(books: Books, subscription_id: str, context: Context) -> SnapshotEvent:
    """End a subscription now, and tell of it."""
    ended = replace(_live(books, subscription_id), status="canceled", ended_at=context.now)
    books.subscriptions[subscription_id] = ended
    return emit(books, "customer.subscription.deleted", _document(ended, context), context)


def fail_invoice(books: Books, subscription_id: str, context: Context) -> SnapshotEvent:
    """Tell that an invoice was not paid. What follows for the subscription is an update of its own."""
    subscription = _found(books, subscription_id)
    before_basil = context.options.events_before_basil
    document = invoice_document(books.new_id("in_"), subscription, context.now, before_basil=before_basil)
    return emit(books, "invoice.payment_failed", document, context)


def complete_checkout(
    books: Books,
    subscription_id: str,
    context: Context,
    *,
    client_reference_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SnapshotEvent:
    """Tell that the checkout which led to the subscription is complete."""
    document = checkout_document(
        books.new_id("cs_"),
        _found(books, subscription_id),
        context.now,
        client_reference_id=client_reference_id,
        metadata=metadata or {},
    )
    return emit(books, "checkout.session.completed", document, context)


def _document(subscription: Subscription, context: Context) -> Json:
    return subscription.document(before_basil=context.options.events_before_basil)


def _found(books: Books, subscription_id: str) -> Subscription:
    if subscription_id not in books.subscriptions:
        raise no_such("subscription", subscription_id, param="id", status=404)
    return books.subscriptions[subscription_id]


def _live(books: Books, subscription_id: str) -> Subscription:
    subscription = _found(books, subscription_id)
    if subscription.ended_at is not None:
        raise invalid("A canceled subscription cannot be changed.")
    return subscription
