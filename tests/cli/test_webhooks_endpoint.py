"""An application's endpoint beside `webhooks pull`: the local Stripe delivers, the endpoint verifies and stores."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import pytest

from cli.conftest import Shell
from cli.waiting import until
from meterctl.core.signature import verify

SECRETS = ("whsec_old_example", "whsec_new_example")


class Application(ThreadingHTTPServer):
    """What docs/webhooks.md tells an endpoint to do; it fails at the first `failures` deliveries."""

    def __init__(self, shell: Shell, *, failures: int) -> None:
        super().__init__(("127.0.0.1", 0), Endpoint)
        self.database_url = shell.database_url
        self.clock = shell.stripe.clock
        self.failures = failures
        self.lock = threading.Lock()
        self.new: list[bool] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/stripe"

    def take(self, body: bytes, signature: str) -> int:
        with self.lock:
            if self.failures:
                self.failures -= 1
                return 500
            verify(body, signature, SECRETS[1:], now=self.clock.now(), tolerance=timedelta(seconds=300))
            with psycopg.connect(self.database_url) as connection:
                text = "SELECT meterctl.store_stripe_event(%s::jsonb, %s, %s)"
                row = connection.execute(text, [body.decode(), body, signature]).fetchone()
                assert row is not None
                self.new.append(row[0])
            return 200


class Endpoint(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Application)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.take(body, self.headers["Stripe-Signature"]))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def application(shell: Shell, *, failures: int = 0) -> Iterator[Application]:
    with Application(shell, failures=failures) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        shell.stripe.set_options(delivery_retry_s=[0.05] * 5)
        shell.stripe.add_endpoint(server.url, SECRETS)
        shell.stripe.add_endpoint(server.url, SECRETS, thin=True)
        yield server
        server.shutdown()
        thread.join()


def subscribed(shell: Shell) -> None:
    subscription = shell.stripe.create_subscription("cus_ada")
    shell.stripe.complete_checkout(subscription, client_reference_id="ada")


def test_what_an_endpoint_stored_is_acted_on_without_a_key(shell: Shell) -> None:
    """It fails at first, so that Stripe delivers again, with a new signature."""
    shell.extra["STRIPE_SECRET_KEY"] = ""
    with application(shell, failures=2) as app:
        subscribed(shell)
        until(lambda: len(app.new) == 2 and len(shell.stripe.deliveries()) == 4)
    assert shell.run("webhooks", "pull").stdout == "0 new events (0 known); 2 processed\n"
    assert shell.sql("SELECT user_id, status FROM subscriptions") == [("ada", "active")]


def test_endpoint_and_lists_together_have_one_effect(shell: Shell) -> None:
    """Delivered twice, pulled before and after."""
    shell.stripe.set_options(duplicate_deliveries=True)
    with application(shell) as app:
        subscribed(shell)
        until(lambda: len(app.new) == 4)
        assert "2 processed" in shell.run("webhooks", "pull").stdout
        assert "nothing to do" in shell.run("webhooks", "pull").stdout
    assert sorted(app.new) == [False, False, True, True]
    assert shell.sql("SELECT DISTINCT source, status, attempt_count FROM meterctl.stripe_events") == [
        ("endpoint", "processed", 1)
    ]


def test_what_the_endpoint_missed_is_pulled(shell: Shell) -> None:
    with application(shell, failures=1_000):
        subscribed(shell)
        until(lambda: len(shell.stripe.deliveries()) >= 2)
    assert shell.run("webhooks", "pull").stdout == "2 new events (0 known); 2 processed\n"


@pytest.mark.parametrize("keep_key", [True, False], ids=["key", "no key"])
def test_a_thin_event_is_fetched_when_it_is_acted_on(shell: Shell, *, keep_key: bool) -> None:
    """Its data were never delivered: without a key it cannot be acted on, and stays to be replayed."""
    shell.usage(quantity=3)
    shell.stripe.reject_later(customer="cus_1")
    with application(shell) as app:
        assert shell.run("report-usage", "-q").code == 0
        shell.stripe.clock.advance(timedelta(seconds=30))
        shell.stripe.thin_events()
        until(lambda: len(app.new) == 1)
    shell.stripe.set_options(event_list_lag_s=86400)
    if not keep_key:
        shell.extra["STRIPE_SECRET_KEY"] = ""
        assert shell.run("webhooks", "pull").code == 10
        assert shell.sql("SELECT state FROM meterctl.meter_events") == [("accepted",)]
        shell.extra = {}
        assert shell.run("webhooks", "replay", "--failed").code == 0
    else:
        assert shell.run("webhooks", "pull").code == 0
    assert shell.sql("SELECT state FROM meterctl.meter_events") == [("in_doubt",)]
    (payload,) = shell.sql("SELECT payload ? 'data' FROM meterctl.stripe_events")
    assert payload == (True,)
