"""The part of the control API that makes Stripe tell of something."""

from collections.abc import Callable

from meterctl.sandbox.local_stripe import bodies
from meterctl.sandbox.local_stripe.bodies import Body
from meterctl.sandbox.local_stripe.event_console import EventConsole
from meterctl.sandbox.local_stripe.fault_documents import random_rejections_of
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.rejections import CUSTOMER_NOT_FOUND

Answers = dict[tuple[str, str], Callable[[Body], object]]
"""(method, path) → what answers it, with a JSON document."""

Commands = dict[tuple[str, str], Callable[[Body], None]]


def answers(console: EventConsole) -> Answers:
    """Return the routes that answer with something: an id, or what there is."""
    return {
        ("GET", "stripe_events"): lambda body: _stripe_events(console, body),
        ("POST", "stripe_events"): lambda body: _named(_emitted(console, body)),
        ("POST", "subscriptions"): lambda body: _named(_created(console, body)),
        ("POST", "subscriptions/update"): lambda body: _named(_updated(console, body)),
        ("POST", "subscriptions/end"): lambda body: _named(
            console.end_subscription(bodies.text(body, "id"), livemode=bodies.live(body))
        ),
        ("POST", "subscriptions/fail_invoice"): lambda body: _named(
            console.fail_invoice(bodies.text(body, "id"), livemode=bodies.live(body))
        ),
        ("POST", "subscriptions/complete_checkout"): lambda body: _named(_completed(console, body)),
        ("POST", "reports"): lambda body: _named(_reported(console, body)),
        ("GET", "deliveries"): lambda _: [delivery.record() for delivery in console.deliveries()],
    }


def commands(console: EventConsole) -> Commands:
    """Return the routes that only do something."""
    return {
        ("POST", "rejections"): lambda body: _reject_later(console, body),
        ("PUT", "rejections/random"): lambda body: console.set_random_rejections(
            random_rejections_of({name: value for name, value in body.items() if name != "livemode"}),
            livemode=bodies.live(body),
        ),
        ("DELETE", "rejections/random"): lambda body: console.set_random_rejections(None, livemode=bodies.live(body)),
        ("POST", "endpoints"): lambda body: _add_endpoint(console, body),
    }


def _named(made: str) -> Json:
    return {"id": made}


def _stripe_events(console: EventConsole, body: Body) -> Json:
    livemode = bodies.live(body)
    return {
        "snapshot": [event.document() for event in console.snapshot_events(livemode=livemode)],
        "thin": [event.document(with_data=True) for event in console.thin_events(livemode=livemode)],
    }


def _emitted(console: EventConsole, body: Body) -> str:
    return console.emit(
        bodies.text(body, "type"),
        bodies.mapping(body, "object") or {},
        created=bodies.optional_instant(body, "created"),
        previous_attributes=bodies.mapping(body, "previous_attributes"),
        livemode=bodies.live(body),
        api_version=bodies.optional_text(body, "api_version"),
    )


def _created(console: EventConsole, body: Body) -> str:
    return console.create_subscription(
        bodies.text(body, "customer"),
        subscription_id=bodies.optional_text(body, "id"),
        status=bodies.optional_text(body, "status") or "active",
        period_start=bodies.optional_instant(body, "period_start"),
        period_end=bodies.optional_instant(body, "period_end"),
        start_date=bodies.optional_instant(body, "start_date"),
        metadata=bodies.labels(body, "metadata"),
        livemode=bodies.live(body),
    )


def _updated(console: EventConsole, body: Body) -> str:
    return console.update_subscription(
        bodies.text(body, "id"),
        status=bodies.optional_text(body, "status"),
        period_start=bodies.optional_instant(body, "period_start"),
        period_end=bodies.optional_instant(body, "period_end"),
        livemode=bodies.live(body),
    )


def _completed(console: EventConsole, body: Body) -> str:
    return console.complete_checkout(
        bodies.text(body, "id"),
        client_reference_id=bodies.optional_text(body, "client_reference_id"),
        metadata=bodies.labels(body, "metadata"),
        livemode=bodies.live(body),
    )


def _reported(console: EventConsole, body: Body) -> str:
    return console.report_error(
        bodies.text(body, "identifier"),
        code=bodies.optional_text(body, "code") or CUSTOMER_NOT_FOUND,
        message=bodies.optional_text(body, "message"),
        error_count=bodies.count(body, "error_count", 1),
        meter_id=bodies.optional_text(body, "meter_id"),
        livemode=bodies.live(body),
    )


def _reject_later(console: EventConsole, body: Body) -> None:
    console.reject_later(
        bodies.optional_text(body, "identifier"),
        customer=bodies.optional_text(body, "customer"),
        event_name=bodies.optional_text(body, "event_name"),
        times=bodies.count(body, "times", 1),
        code=bodies.optional_text(body, "code") or CUSTOMER_NOT_FOUND,
        livemode=bodies.live(body),
    )


def _add_endpoint(console: EventConsole, body: Body) -> None:
    console.add_endpoint(
        bodies.text(body, "url"),
        bodies.texts(body, "secrets") or [],
        types=bodies.texts(body, "types") or ["*"],
        thin=body.get("thin") is True,
        livemode=bodies.live(body),
    )
