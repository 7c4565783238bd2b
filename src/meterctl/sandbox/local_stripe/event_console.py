"""The part of the console that makes Stripe tell of something: events, and the life of subscriptions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from meterctl.sandbox.local_stripe import emission, reports, subscriptions
from meterctl.sandbox.local_stripe.console import Console
from meterctl.sandbox.local_stripe.deliveries import Delivery, Endpoint, check_loopback
from meterctl.sandbox.local_stripe.events import RelatedObject, SnapshotEvent, ThinEvent
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.rejections import CUSTOMER_NOT_FOUND, RandomRejections, ScriptedRejection
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books
from meterctl.sandbox.local_stripe.subscription_documents import Subscription

Instant = datetime | int
"""An aware instant, or unix seconds as Stripe has them."""


class EventConsole(Console):
    """Make events and read them back, whatever the lists show."""

    def emit(  # one for each thing an event says
        self,
        kind: str,
        about: Mapping[str, object],
        *,
        created: Instant | None = None,
        previous_attributes: Json | None = None,
        livemode: bool = False,
        api_version: str | None = None,
    ) -> str:
        """Keep a snapshot event of type `kind` with any object `about`, return its id."""
        return self._with_books(
            livemode,
            lambda books, context: (
                emission.emit(
                    books,
                    kind,
                    about,
                    context,
                    previous=previous_attributes,
                    created=_instant(created),
                    api_version=api_version,
                ).id
            ),
        )

    def emit_thin(
        self,
        kind: str,
        data: Json,
        *,
        related: RelatedObject | None = None,
        created: Instant | None = None,
        livemode: bool = False,
    ) -> str:
        """Keep a thin event of type `kind` with any data, return its id."""
        return self._with_books(
            livemode,
            lambda books, context: (
                emission.emit_thin(
                    books, kind, data, related=related, created=_instant(created) or context.now, emitted=context.now
                ).id
            ),
        )

    def create_subscription(  # one for each thing that can be chosen
        self,
        customer: str,
        *,
        subscription_id: str | None = None,
        status: str = "active",
        period_start: Instant | None = None,
        period_end: Instant | None = None,
        start_date: Instant | None = None,
        metadata: Mapping[str, str] | None = None,
        livemode: bool = False,
    ) -> str:
        """Add a subscription, return its id: `customer.subscription.created`. The customer need not be there."""
        start = subscriptions.Start(
            customer=customer,
            subscription_id=subscription_id,
            status=status,
            start_date=_instant(start_date),
            period_start=_instant(period_start),
            period_end=_instant(period_end),
            metadata=metadata or {},
        )
        return self._with_books(
            livemode, lambda books, context: subscriptions.create_subscription(books, start, context).id
        )

    def update_subscription(
        self,
        subscription_id: str,
        *,
        status: str | None = None,
        period_start: Instant | None = None,
        period_end: Instant | None = None,
        livemode: bool = False,
    ) -> str:
        """Change a subscription: `customer.subscription.updated`, whose id is returned."""
        return self._with_books(
            livemode,
            lambda books, context: (
                subscriptions.update_subscription(
                    books,
                    subscription_id,
                    context,
                    status=status,
                    period_start=_instant(period_start),
                    period_end=_instant(period_end),
                ).id
            ),
        )

    def end_subscription(self, subscription_id: str, *, livemode: bool = False) -> str:
        """End a subscription now: `customer.subscription.deleted`, whose id is returned."""
        return self._with_books(
            livemode, lambda books, context: subscriptions.end_subscription(books, subscription_id, context).id
        )

    def fail_invoice(self, subscription_id: str, *, livemode: bool = False) -> str:
        """Let a payment fail: `invoice.payment_failed`, whose id is returned. The subscription stays as it is."""
        return self._with_books(
            livemode, lambda books, context: subscriptions.fail_invoice(books, subscription_id, context).id
        )

    def complete_checkout(
        self,
        subscription_id: str,
        *,
        client_reference_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        livemode: bool = False,
    ) -> str:
        """Complete the checkout of a subscription: `checkout.session.completed`, whose id is returned."""
        return self._with_books(
            livemode,
            lambda books, context: (
                subscriptions.complete_checkout(
                    books, subscription_id, context, client_reference_id=client_reference_id, metadata=metadata
                ).id
            ),
        )

    def subscriptions(self, *, livemode: bool = False) -> list[Subscription]:
        """Return all subscriptions as they are now, ended ones too."""
        return self._with_books(livemode, lambda books, _: list(books.subscriptions.values()))

    def snapshot_events(self, *, livemode: bool = False) -> list[SnapshotEvent]:
        """Return every event of v1 in the order they came to be."""
        return self._with_books(livemode, lambda books, _: list(books.snapshots))

    def thin_events(self, *, livemode: bool = False) -> list[ThinEvent]:
        """Return every event of v2 in the order they came to be, reports that have fallen due among them."""

        def read(books: Books, context: Context) -> list[ThinEvent]:
            reports.bring_due(books, context)
            return list(books.thin_events)

        return self._with_books(livemode, read)

    def reject_later(
        self,
        identifier: str | None = None,
        *,
        customer: str | None = None,
        event_name: str | None = None,
        times: int = 1,
        code: str = CUSTOMER_NOT_FOUND,
        livemode: bool = False,
    ) -> None:
        """Drop the next `times` accepted events that match what is given, and report them."""
        rejection = ScriptedRejection(
            identifier=identifier, customer=customer, event_name=event_name, times=times, code=code
        )
        self._with_books(livemode, lambda books, _: books.rejection_script.add(rejection))

    def set_random_rejections(self, rejections: RandomRejections | None, *, livemode: bool = False) -> None:
        """Put seeded rejections in force in place of others; None takes them out."""
        self._with_books(livemode, lambda books, _: books.rejection_script.set_random(rejections))

    def report_error(
        self,
        identifier: str,
        *,
        code: str = CUSTOMER_NOT_FOUND,
        message: str | None = None,
        error_count: int | None = None,
        meter_id: str | None = None,
        livemode: bool = False,
    ) -> str:
        """Report an error now, whatever became of an event, return the report's id.

        `identifier` goes out as the one sample's `request.identifier`, `error_count` may be more than that one. The
        meter is that of the event stored under it, else the first there is; code `no_meter` names none.
        """
        return self._with_books(
            livemode,
            lambda books, context: (
                reports.report_error(
                    books,
                    context,
                    identifier=identifier,
                    code=code,
                    message=message or f"The event was rejected: {code}.",
                    error_count=error_count or 1,
                    meter_id=meter_id,
                ).id
            ),
        )

    def add_endpoint(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        types: Sequence[str] = ("*",),
        thin: bool = False,
        livemode: bool = False,
    ) -> None:
        """Deliver every new event whose type matches to a URL on this machine, with a signature for each secret.

        A thin endpoint gets v2 events without their data, others v1 events. Raise ValueError for a URL elsewhere.
        """
        check_loopback(url)
        if not secrets:
            raise ValueError("An endpoint needs a secret to sign with.")

        def add(books: Books, _: Context) -> None:
            endpoint = Endpoint(url=url, secrets=tuple(secrets), types=tuple(types), thin=thin, livemode=livemode)
            endpoint.take_new(books)  # what was there before is not new
            self.engine.endpoints.append(endpoint)

        self._with_books(livemode, add)

    def deliveries(self) -> list[Delivery]:
        """Return every attempt to deliver an event, in both modes, oldest first."""
        with self.engine.lock:
            return list(self.engine.deliveries)


def _instant(given: Instant | None) -> datetime | None:
    return datetime.fromtimestamp(given, UTC) if isinstance(given, int) else given
