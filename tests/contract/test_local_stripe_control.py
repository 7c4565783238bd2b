"""The control API over HTTP, the clock, going away and coming back, and the process of its own."""

import errno
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from typing import Any

import freezegun
import pytest
import stripe

from meterctl.sandbox.local_stripe import ControlError, LocalStripe, StripeOptions, StripeProcess

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def control(server: LocalStripe, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    connection.request(method, f"/_sandbox/{path}", body=None if body is None else json.dumps(body))
    response = connection.getresponse()
    answer = response.status, json.load(response)
    connection.close()
    return answer


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within five seconds."""
    deadline = time.monotonic() + 5
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_options_are_read_and_patched(frozen: LocalStripe, report: Any) -> None:
    status, options = control(frozen, "PATCH", "options", {"unknown_customer": "later", "identifier_window_h": 48})
    assert (status, options["identifier_window_h"]) == (200, 48)
    assert control(frozen, "GET", "options")[1] == options
    report(customer="cus_nobody")
    assert control(frozen, "GET", "rejections")[1][0]["customer"] == "cus_nobody"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "options", {"colour": "red"}),
        ("PATCH", "options", {"unknown_customer": "never"}),
        ("PATCH", "options", {"latency_ms": "fast"}),
        ("PATCH", "options", {"latency_ms": -1}),
        ("PATCH", "options", {"mute": 1}),
        ("POST", "clock", {}),
        ("POST", "clock", {"set": "noon"}),
        ("POST", "clock", {"set": "2026-11-21T12:00:00"}),
        ("POST", "faults", {"kind": "earthquake"}),
        ("POST", "faults", {"kind": "reset", "nth": 0}),
        ("POST", "faults", {"kind": "reset", "whom": "cus_known"}),
        ("POST", "faults", [{"kind": "reset"}, 3]),
        ("PUT", "faults/random", {"seed": 1, "rate": 0.5, "kinds": []}),
        ("PUT", "faults/random", {"seed": 1}),
        ("POST", "customers", {"id": "cus_known"}),
        ("POST", "keys", {"key": "nonsense"}),
        ("POST", "down", {"seconds": "long"}),
        ("PATCH", "options", {"bad_value": "never"}),
        ("PATCH", "options", {"event_list_seed": 0.5}),
        ("PATCH", "options", {"report_samples_max": 1.5}),
        ("PATCH", "options", {"delivery_retry_s": [1, "2"]}),
        ("POST", "stripe_events", {"object": {}}),
        ("POST", "stripe_events", {"type": "invoice.paid", "object": 7}),
        ("POST", "stripe_events", {"type": "invoice.paid", "created": "2026-11-21T12:00:00"}),
        ("POST", "subscriptions", {"status": "active"}),
        ("POST", "subscriptions/end", {"id": "sub_nobody"}),
        ("POST", "rejections", {"times": 0}),
        ("PUT", "rejections/random", {"seed": 1}),
        ("PUT", "rejections/random", {"seed": 1, "rate": 1, "kinds": ["reset"]}),
        ("POST", "reports", {"identifier": "a", "error_count": "many"}),
        ("POST", "endpoints", {"url": "http://example.com/", "secrets": ["whsec_example"]}),
        ("POST", "endpoints", {"url": "http://127.0.0.1:1/", "secrets": "whsec_example"}),
        ("POST", "endpoints", {"url": "http://127.0.0.1:1/"}),
    ],
)
def test_what_does_not_fit_is_400_and_says_why(frozen: LocalStripe, method: str, path: str, body: Any) -> None:
    status, answer = control(frozen, method, path, body)
    assert status == 400
    assert answer["error"]


def test_help_names_every_route(frozen: LocalStripe) -> None:
    assert any("/_sandbox/faults/random" in line for line in control(frozen, "GET", "")[1]["help"])
    status, answer = control(frozen, "GET", "nowhere")
    assert status == 404
    assert "GET /_sandbox/" in answer["error"]


def test_clock_is_set_advanced_and_told_in_every_date(frozen: LocalStripe, report: Any) -> None:
    control(frozen, "POST", "clock", {"set": "2027-01-31T23:59:50Z", "frozen": True})
    assert control(frozen, "POST", "clock", {"advance_s": 20})[1] == {"now": "2027-02-01T00:00:10Z", "frozen": True}
    answer = report()
    assert parsedate_to_datetime(answer.last_response.headers["Date"]) == datetime(2027, 2, 1, 0, 0, 10, tzinfo=UTC)
    assert answer.created == int(datetime(2027, 2, 1, 0, 0, 10, tzinfo=UTC).timestamp())
    with pytest.raises(stripe.InvalidRequestError) as caught:
        report(value="x")
    assert caught.value.headers is not None
    assert "01 Feb 2027 00:00:10 GMT" in caught.value.headers["Date"]


def test_clock_runs_on_from_where_it_was_set() -> None:
    server = LocalStripe()
    server.clock.set(NOW)
    assert timedelta(0) <= server.clock.now() - NOW < timedelta(seconds=5)
    assert server.clock.freeze() == server.clock.now()
    server.clock.reset()
    assert abs(server.clock.now() - datetime.now(UTC)) < timedelta(seconds=5)


def test_clock_may_be_injected() -> None:
    instants = [NOW]
    with LocalStripe(clock=lambda: instants[0]) as server:
        server.clock.advance(timedelta(hours=1))
        instants[0] += timedelta(days=1)
        assert server.clock.now() == NOW + timedelta(days=1, hours=1)


def test_clock_wants_time_zones() -> None:
    with pytest.raises(ValueError, match="time zone"):
        LocalStripe(clock=lambda: datetime(2026, 11, 21)).clock.now()  # noqa: DTZ001  # the mistake under test


def test_a_test_that_freezes_time_does_not_freeze_the_server(frozen: LocalStripe, report: Any) -> None:
    frozen.set_options(latency_ms=20)
    with freezegun.freeze_time("2020-01-01"):
        report()


def test_everything_stored_is_read_back(frozen: LocalStripe, report: Any) -> None:
    report("one", "0.10", key="one:0", timestamp=int(NOW.timestamp()) - 1)
    (event,) = control(frozen, "GET", "events")[1]
    assert event == {
        "identifier": "one",
        "customer": "cus_known",
        "event_name": "ai_suggestion",
        "meter_id": frozen.meters()[0].id,
        "value": "0.10",
        "timestamp": "2026-11-21T11:59:59Z",
        "received": "2026-11-21T12:00:00Z",
        "payload": {"stripe_customer_id": "cus_known", "value": "0.10"},
        "idempotency_key": "one:0",
        "request_id": event["request_id"],
        "livemode": False,
        "counted": True,
    }
    assert control(frozen, "GET", "totals")[1] == [
        {"event_name": "ai_suggestion", "customer": "cus_known", "total": "0.10"}
    ]
    assert control(frozen, "GET", "events?livemode=true")[1] == []


def test_requests_are_logged_and_counted(frozen: LocalStripe, report: Any) -> None:
    control(frozen, "POST", "faults", [{"kind": "reset"}, {"kind": "rate_limited", "nth": 2}])
    for raised in (stripe.APIConnectionError, stripe.RateLimitError):
        with pytest.raises(raised):
            report("one", key="k")
    report("one", key="k")
    answer = control(frozen, "GET", "requests?operation=meter_events.create")[1]
    assert answer["counts"] == {"meter_events.create": {"no answer": 1, "429": 1, "200": 1}}
    assert [(entry["fault"], entry["status"], entry["idempotency_key"]) for entry in answer["requests"]] == [
        ("reset", None, "k"),
        ("rate_limited", 429, "k"),
        (None, 200, "k"),
    ]
    assert (answer["requests"][0]["method"], answer["requests"][0]["path"]) == ("POST", "/v1/billing/meter_events")
    assert [fault["struck"] for fault in control(frozen, "GET", "faults")[1]["scripted"]] == [1, 1]


def test_log_is_bounded_and_the_counts_are_not() -> None:
    with LocalStripe(options=StripeOptions(request_log_max=2)) as server:
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=5)
        for _ in range(5):
            connection.request("GET", "/v1/account")
            connection.getresponse().read()
        connection.close()
        assert len(server.requests()) == 2
        assert server.request_counts() == {"account.retrieve": {"401": 5}}


def test_keys_are_registered_and_revoked(frozen: LocalStripe, make_stripe_sdk: Any) -> None:
    control(frozen, "POST", "keys", {"key": "rk_test_reader", "allowed": ["account.*"]})
    reader = make_stripe_sdk("rk_test_reader")
    reader.v1.accounts.retrieve_current()
    with pytest.raises(stripe.PermissionError):
        reader.v1.billing.meters.list()
    control(frozen, "DELETE", "keys", {"key": "rk_test_reader"})
    with pytest.raises(stripe.AuthenticationError):
        reader.v1.accounts.retrieve_current()


def test_reset_returns_to_the_start(frozen: LocalStripe, report: Any) -> None:
    report("one", key="k")
    control(frozen, "PUT", "faults/random", {"seed": 1, "rate": 1, "kinds": ["reset"]})
    control(frozen, "PATCH", "options", {"latency_ms": 5})
    control(frozen, "POST", "reset")
    assert (frozen.events(), frozen.totals(), frozen.customers(), frozen.meters(), frozen.requests()) == (
        [],
        {},
        [],
        [],
        [],
    )
    assert frozen.options == StripeOptions()
    assert abs(frozen.clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    control(frozen, "POST", "customers", [{"id": "cus_known"}, {"id": "cus_live", "livemode": True}])
    frozen.create_meter(event_name="ai_suggestion")
    assert "Idempotent-Replayed" not in report("one", key="k").last_response.headers
    assert [customer.id for customer in frozen.customers(livemode=True)] == ["cus_live"]


def test_mute_server_answers_nobody_but_the_control_api(frozen: LocalStripe, report: Any, make_stripe_sdk: Any) -> None:
    control(frozen, "PATCH", "options", {"mute": True})
    with pytest.raises(stripe.APIConnectionError):
        report("one", sdk=make_stripe_sdk(read_timeout_s=0.1))
    control(frozen, "PATCH", "options", {"mute": False})
    report("one")
    assert len(frozen.events()) == 1


def test_server_goes_away_and_comes_back_on_the_same_port(frozen: LocalStripe, report: Any) -> None:
    report("one")
    url = frozen.url
    frozen.stop_listening()
    with pytest.raises(stripe.APIConnectionError):
        report("two")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", frozen.port), timeout=2)
    frozen.start_listening()
    assert frozen.url == url
    report("three")
    assert [event.identifier for event in frozen.events()] == ["one", "three"]


def test_server_goes_down_for_a_while_when_told_over_http(frozen: LocalStripe, report: Any) -> None:
    control(frozen, "POST", "down", {"seconds": 0.3})

    def is_up() -> bool:
        try:
            report()
        except stripe.APIConnectionError:
            return False
        return True

    assert eventually(lambda: not is_up())
    assert eventually(is_up)


def test_stopping_is_quick_while_calls_hang(frozen: LocalStripe) -> None:
    frozen.set_options(mute=True)
    waiting = HTTPConnection(frozen.url.removeprefix("http://"), timeout=5)
    waiting.request("GET", "/v1/account")
    started = time.monotonic()
    frozen.stop()
    frozen.stop()
    waiting.close()
    assert time.monotonic() - started < 1


def test_a_server_can_be_started_again_and_a_taken_port_is_an_error() -> None:
    server = LocalStripe()
    with server:
        port = server.port
        with pytest.raises(OSError, match="in use"):
            LocalStripe(port=port).start()
    with server:
        assert control(server, "GET", "clock")[0] == 200
    with pytest.raises(RuntimeError, match="not started"):
        assert server.url


@pytest.fixture
def process() -> Iterator[StripeProcess]:
    """A local Stripe in a process of its own."""
    with StripeProcess("--identifier-window-h", "48", "--unknown-customer", "later") as started:
        yield started


def test_process_of_its_own_takes_options_and_control(process: StripeProcess) -> None:
    options = process.control("GET", "options")
    assert (options["identifier_window_h"], options["unknown_customer"]) == (48, "later")
    process.create_customer("cus_1")
    assert process.control("GET", "customers")[0]["id"] == "cus_1"
    process.add_fault(kind="lost_answer", nth=3)
    assert (process.totals(), process.events()) == ({}, [])
    with pytest.raises(ControlError, match="no fault of the kind"):
        process.add_fault(kind="earthquake")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_at_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "meterctl.sandbox.local_stripe"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().startswith("http://127.0.0.1:")
        child.send_signal(number)
        assert child.wait(10) == 0
        assert (child.stdout.read(), child.stderr.read()) == ("", "")


def test_process_ends_with_its_parent() -> None:
    """Even when the parent is killed, which tells nobody."""
    program = (
        "import os, signal; from meterctl.sandbox.local_stripe import StripeProcess; "
        "print(StripeProcess().start().url, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    port = int(parent.stdout.strip().rsplit(":", 1)[1])

    def is_refused() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED

    assert eventually(is_refused)


def test_subscriptions_and_events_are_made_over_http(frozen: LocalStripe) -> None:
    begun = {"customer": "cus_known", "id": "sub_1", "period_end": "2026-12-01T00:00:00Z", "metadata": {"user_id": 7}}
    assert control(frozen, "POST", "subscriptions", begun) == (200, {"id": "sub_1"})
    for path, more in (
        ("update", {"status": "past_due"}),
        ("fail_invoice", {}),
        ("complete_checkout", {}),
        ("end", {}),
    ):
        assert control(frozen, "POST", f"subscriptions/{path}", {"id": "sub_1", **more})[0] == 200
    made = control(frozen, "POST", "stripe_events", {"type": "invoice.paid", "object": {"id": "in_1"}, "created": 1})[1]
    events = control(frozen, "GET", "stripe_events")[1]["snapshot"]
    assert [event["type"] for event in events] == [
        "customer.subscription.created",
        "customer.subscription.updated",
        "invoice.payment_failed",
        "checkout.session.completed",
        "customer.subscription.deleted",
        "invoice.paid",
    ]
    assert (events[-1]["id"], events[-1]["created"], events[-1]["data"]) == (made["id"], 1, {"object": {"id": "in_1"}})
    first = events[0]["data"]["object"]
    assert (first["items"]["data"][0]["current_period_end"], first["metadata"]) == (1_796_083_200, {"user_id": "7"})


def test_rejections_and_reports_are_made_over_http(frozen: LocalStripe, report: Any) -> None:
    control(frozen, "POST", "rejections", {"identifier": "b", "code": "meter_event_invalid_value"})
    for identifier in "ab":
        report(identifier)
    control(frozen, "PUT", "rejections/random", {"seed": 1, "rate": 1})
    report("c")
    control(frozen, "DELETE", "rejections/random")
    report("d")
    assert [each["identifier"] for each in control(frozen, "GET", "rejections")[1]] == ["b", "c"]
    made = control(frozen, "POST", "reports", {"identifier": "a", "error_count": 3})[1]
    (seen,) = control(frozen, "GET", "stripe_events")[1]["thin"]
    assert (seen["id"], seen["data"]["reason"]["error_count"]) == (made["id"], 3)


def test_endpoints_are_named_over_http(frozen: LocalStripe) -> None:
    """The local Stripe's own 401 will do for an answer."""
    control(frozen, "PATCH", "options", {"delivery_retry_s": []})
    control(frozen, "POST", "endpoints", {"url": f"{frozen.url}/webhooks", "secrets": ["whsec_example"]})
    event_id = frozen.emit("customer.updated", {})
    assert eventually(lambda: bool(control(frozen, "GET", "deliveries")[1]))
    (delivery,) = control(frozen, "GET", "deliveries")[1]
    assert (delivery["event_id"], delivery["status"]) == (event_id, 401)
