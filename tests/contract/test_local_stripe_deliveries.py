"""Events delivered to an endpoint of an application: signed, repeated, and never in the way of answers."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import stripe

from meterctl.core.signature import WebhookRefusedError, parse_event, verify
from meterctl.sandbox.local_stripe import LocalStripe

SECRET, NEXT_SECRET = "whsec_example_old", "whsec_example_new"  # fakes
NO_METER_FOUND = "v1.billing.meter.no_meter_found"
TOLERANCE = timedelta(minutes=5)


@dataclass
class Received:
    """One request as it came in."""

    body: bytes
    headers: dict[str, str]

    @property
    def signature(self) -> str:
        return self.headers["Stripe-Signature"]


@dataclass
class Application:
    """An endpoint that answers with `statuses` one after the other, then with 200; `before` runs before each answer."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def status(self) -> int:
        self.before()
        return self.statuses.pop(0) if self.statuses else 200


@pytest.fixture
def application() -> Iterator[Application]:
    """An endpoint of an application, on a free port."""
    it = Application()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            it.received.append(Received(body, dict(self.headers)))
            status = it.status()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", it.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        it.url = f"http://127.0.0.1:{server.server_port}/webhooks"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield it
        server.shutdown()
        thread.join()


def wait_for(holds: Callable[[], object]) -> None:
    """Wait until it comes to hold; fail after five seconds."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)


def test_a_delivery_is_signed_as_the_sdk_and_meterctl_verify(frozen: LocalStripe, application: Application) -> None:
    frozen.clock.reset()  # the SDK goes by its own clock
    frozen.add_endpoint(application.url, [SECRET])
    event_id = frozen.emit("customer.updated", {"name": "Zoë"})
    wait_for(frozen.deliveries)
    (received,) = application.received
    construct: Any = stripe.Webhook.construct_event  # the SDK does not annotate it
    event = construct(received.body, received.signature, SECRET)
    assert (event.id, event.data.object["name"]) == (event_id, "Zoë")
    signed_at = verify(received.body, received.signature, [SECRET], now=datetime.now(UTC), tolerance=TOLERANCE)
    assert parse_event(received.body).id == event_id
    (delivery,) = frozen.deliveries()
    assert delivery.record() == {
        "event_id": event_id,
        "url": application.url,
        "status": 200,
        "t": int(signed_at.timestamp()),
    }


def test_during_rotation_there_is_a_signature_for_each_secret(frozen: LocalStripe, application: Application) -> None:
    frozen.add_endpoint(application.url, [SECRET, NEXT_SECRET])
    frozen.emit("customer.updated", {})
    wait_for(lambda: application.received)
    (received,) = application.received
    now = frozen.clock.now()
    for secret in (SECRET, NEXT_SECRET):
        assert verify(received.body, received.signature, [secret], now=now, tolerance=TOLERANCE) == now
    with pytest.raises(WebhookRefusedError, match="no v1 signature"):
        verify(received.body, received.signature, ["whsec_example_other"], now=now, tolerance=TOLERANCE)


def test_a_failed_delivery_is_signed_anew_and_tried_again(frozen: LocalStripe, application: Application) -> None:
    """The body stays the same; time and signature do not. A redirect is a failure and is not followed."""
    frozen.set_options(delivery_retry_s=(0, 0.01, 0.01))
    application.statuses = [500, 302]
    application.before = lambda: frozen.clock.advance(timedelta(seconds=10))
    started_s = int(frozen.clock.now().timestamp())
    frozen.add_endpoint(application.url, [SECRET])
    event_id = frozen.emit("customer.updated", {})
    wait_for(lambda: len(frozen.deliveries()) == 3)
    assert [(delivery.event_id, delivery.status, delivery.t - started_s) for delivery in frozen.deliveries()] == [
        (event_id, 500, 0),
        (event_id, 302, 10),
        (event_id, 200, 20),
    ]
    assert len({received.body for received in application.received}) == 1
    assert len({received.signature for received in application.received}) == 3
    for received in application.received:
        verify(received.body, received.signature, [SECRET], now=frozen.clock.now(), tolerance=TOLERANCE)


def test_an_endpoint_that_is_not_there_is_given_up(frozen: LocalStripe) -> None:
    frozen.set_options(delivery_retry_s=(0.01,))
    with LocalStripe() as gone:
        url = f"{gone.url}/webhooks"
    frozen.add_endpoint(url, [SECRET])
    frozen.emit("customer.updated", {})
    wait_for(lambda: len(frozen.deliveries()) == 2)
    time.sleep(0.1)
    assert [delivery.status for delivery in frozen.deliveries()] == [None, None]


def test_an_endpoint_gets_what_is_new_of_its_mode_and_types(frozen: LocalStripe, application: Application) -> None:
    frozen.emit("invoice.paid", {"of": "before"})
    frozen.add_endpoint(application.url, [SECRET], types=["customer.subscription.*", "invoice.paid"])
    frozen.add_endpoint(f"{application.url}/live", [SECRET], livemode=True)
    frozen.emit("customer.updated", {})
    frozen.emit_thin(NO_METER_FOUND, {})
    wanted = {frozen.emit("invoice.paid", {}), frozen.emit("customer.subscription.paused", {})}
    live = frozen.emit("customer.updated", {}, livemode=True)
    wait_for(lambda: len(frozen.deliveries()) == 3)
    assert {(delivery.event_id, delivery.url) for delivery in frozen.deliveries()} == {
        *((event_id, application.url) for event_id in wanted),
        (live, f"{application.url}/live"),
    }


def test_a_thin_endpoint_is_notified_of_reports_though_nobody_reads_lists(
    frozen: LocalStripe, application: Application, report: Any, stripe_sdk: stripe.StripeClient
) -> None:
    frozen.clock.reset()
    frozen.clock.freeze()
    frozen.reject_later("lost")
    report("lost")
    frozen.add_endpoint(application.url, [SECRET], thin=True)
    frozen.emit("customer.updated", {})
    frozen.clock.advance(timedelta(seconds=12))
    wait_for(lambda: application.received)
    (received,) = application.received
    assert b'"data"' not in received.body
    notification = stripe_sdk.parse_event_notification(received.body, received.signature, SECRET)
    event: Any = notification.fetch_event()
    assert event.data.reason.error_types[0].sample_errors[0].request.identifier == "lost"


def test_deliveries_may_come_twice(frozen: LocalStripe, application: Application) -> None:
    frozen.set_options(duplicate_deliveries=True)
    frozen.add_endpoint(application.url, [SECRET])
    event_id = frozen.emit("customer.updated", {})
    wait_for(lambda: len(frozen.deliveries()) == 2)
    assert [delivery.event_id for delivery in frozen.deliveries()] == [event_id, event_id]


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1/webhooks",
        "http://example.com/",
        "https://127.0.0.1/",
        "ftp://127.0.0.1/",
        "127.0.0.1",
        "http:///",
    ],
)
def test_events_do_not_leave_the_machine(frozen: LocalStripe, url: str) -> None:
    with pytest.raises(ValueError, match="on this machine alone"):
        frozen.add_endpoint(url, [SECRET])


def test_a_slow_endpoint_holds_up_neither_answers_nor_the_end(
    frozen: LocalStripe, application: Application, report: Any
) -> None:
    released = threading.Event()
    application.before = lambda: released.wait(5)
    frozen.add_endpoint(application.url, [SECRET])
    frozen.emit("customer.updated", {})
    wait_for(lambda: application.received)
    started = time.monotonic()
    report()
    frozen.stop()
    assert time.monotonic() - started < 1
    assert frozen.deliveries() == []
    released.set()


def test_a_reset_forgets_endpoints_and_what_was_to_be_tried_again(
    frozen: LocalStripe, application: Application
) -> None:
    frozen.set_options(delivery_retry_s=(0.05,))
    application.statuses = [500]
    frozen.add_endpoint(application.url, [SECRET])
    frozen.emit("customer.updated", {})
    wait_for(frozen.deliveries)
    frozen.reset()
    frozen.emit("customer.updated", {})
    time.sleep(0.2)
    assert (frozen.deliveries(), len(application.received)) == ([], 1)


def test_an_endpoint_may_be_named_before_the_server_starts(application: Application) -> None:
    server = LocalStripe()
    server.add_endpoint(application.url, [SECRET])
    for _ in range(2):
        server.emit("customer.updated", {})
        with server:
            wait_for(lambda: application.received)
        application.received.clear()
