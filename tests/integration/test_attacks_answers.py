"""What Stripe, or whoever answers for it, can say: no answer bills twice or loses a unit, and none takes for ever."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pytest

from meterctl.core.model import MeterEvent, Outcome, OutcomeKind
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.settings import load_settings
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents
from world import World


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server on loopback that reads a request and lets `answer` do what it wants; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            while not stopped.is_set() and read_request(peer):
                answer(peer)

    def accept() -> None:
        while not stopped.is_set():
            with suppress(OSError):
                peer, _ = listener.accept()
                threading.Thread(target=serve, args=[peer], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def read_request(peer: socket.socket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = peer.recv(65536)
        if not chunk:
            return False
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += peer.recv(65536)
    return True


def replying(body: bytes, *, status: str = "200 OK", **headers: str) -> Callable[[socket.socket], None]:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return lambda peer: peer.sendall(head.encode() + body)


def events_at(url: str) -> SingleEvents:
    environ = {
        "DATABASE_URL": "postgresql://localhost/none",
        "STRIPE_SECRET_KEY": LocalStripe.api_key,
        "METERCTL_STRIPE_API_BASE": url,
    }
    settings = load_settings(config_file=None, environ=environ, flags={})
    return SingleEvents(stripe_client(settings.stripe, connections_max=2, read_timeout_s=0.5))


def one_event() -> MeterEvent:
    return MeterEvent(
        id=1,
        event_name="ai_suggestion",
        customer="cus_ada",
        identifier="ws-ada-1",
        payload={"stripe_customer_id": "cus_ada", "value": "3"},
        timestamp=datetime.now(UTC).replace(microsecond=0),
    )


OURS = b'{"object": "billing.meter_event", "identifier": "ws-ada-1"'


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b"true",
        b'"ok"',
        b"1e999",
        b"",
        b"\xff\xfe",
        b'{"object": "billing.meter_event"}',
        OURS + b"}",
        b'{"object": ["billing.meter_event"]}',
        b'{"object": "list", "data": []}',
        b'{"error": "none"}',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_no_2xx_body_ends_the_run(body: bytes) -> None:
    """Anybody between us and Stripe can say 200, with any JSON. Nothing raises; only our own event is accepted."""
    with answering(replying(body)) as url:
        outcome = events_at(url).create(one_event(), idempotency_key="k")
    assert outcome.kind is (OutcomeKind.ACCEPTED if body.startswith(OURS) else OutcomeKind.UNKNOWN)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": []}',
        b'{"error": "x"}',
        b"[]",
        b"null",
        b'{"error": {"message": {"a": 1}}}',
        b'{"error": {"code": 7}}',
    ],
)
@pytest.mark.parametrize("status", ["400 Bad", "429 Slow", "500 Oops", "302 Found", "100 Continue", "204 None"])
def test_no_error_body_ends_the_run(body: bytes, status: str) -> None:
    with answering(replying(body, status=status)) as url:
        outcome = events_at(url).create(one_event(), idempotency_key="k")
    assert outcome.kind not in {OutcomeKind.ACCEPTED, OutcomeKind.REJECTED}


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 0001 00:00:00 +2300",
        "nonsense",
        "Sat, 32 Nov 2026 02:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2300",
        "",
    ],
)
def test_no_date_header_ends_the_run(date: str) -> None:
    with answering(replying(b"{}", status="500 Oops", Date=date)) as url:
        assert events_at(url).create(one_event(), idempotency_key="k").kind is OutcomeKind.UNKNOWN


@pytest.mark.parametrize("message", ["bad \0 byte", "lone \ud800 surrogate"], ids=["nul", "surrogate"])
def test_a_message_that_postgresql_cannot_hold_wedges_nothing(world: World, message: str) -> None:
    """Such text cannot be stored: it must not end the run, this night and every following one."""
    world.customer("ada")
    world.usage("ada", 3)

    body = json.dumps({"error": {"type": "invalid_request_error", "message": message}}).encode()
    with answering(replying(body, status="400 Bad Request")) as url:
        world.wrap_events = lambda _: events_at(url)
        world.run()
    assert world.states() == ["rejected"]


def test_a_huge_error_page_is_not_kept_whole() -> None:
    """The ledger keeps a message for each event: a proxy's page must not make it grow by a page each."""
    page = b"<html>" + b"x" * 3_000_000
    with answering(replying(page, status="502 Bad Gateway")) as url:
        outcome = events_at(url).create(one_event(), idempotency_key="k")
    assert outcome.message is not None
    assert len(outcome.message) < 10_000


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_drips_does_not_hold_the_run_for_ever(part: str) -> None:
    """A byte now and then keeps a read time-out from ever striking; a run waits for all its calls to end."""

    def drip(peer: socket.socket) -> None:
        start = b"HTTP/1.1 200 OK\r\nX: " if part == "head" else b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
        peer.sendall(start)
        for _ in range(100):
            time.sleep(0.2)
            peer.sendall(b" ")

    outcomes: list[Outcome] = []
    with answering(drip) as url:
        call = lambda: outcomes.append(events_at(url).create(one_event(), idempotency_key="k"))  # noqa: E731 -- one line
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(timeout=8)
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.UNKNOWN], "sixteen read time-outs have passed"
