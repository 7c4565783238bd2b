"""The wire under the SDK: which failures prove that nothing was sent, against servers that misbehave byte by byte.

Money depends on it: what "never connected" covers is sent again freely, all else is a doubt.
"""

import base64
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stripe

from meterctl.core.model import MeterEvent, Outcome, OutcomeKind
from meterctl.errors import ConfigurationError
from meterctl.stripe_api.http import Urllib3Client
from meterctl.stripe_api.single import SingleEvents
from wire import Conversation, answer, request_of, reset, saying, serving

IDENTIFIER = "ws-ada-1"
ACCEPTED_JSON = json.dumps({"object": "billing.meter_event", "identifier": IDENTIFIER, "livemode": False}).encode()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    monkeypatch.setenv("STRIPE_SUPPRESS_NOTICES", "true")


@contextmanager
def events_at(base: str, *, read_timeout_s: float = 2.0) -> Iterator[SingleEvents]:
    client = Urllib3Client(base, connections_max=2, connect_timeout_s=0.5, read_timeout_s=read_timeout_s)
    try:
        yield SingleEvents(
            stripe.StripeClient(
                "sk_test_example", base_addresses={"api": base}, max_network_retries=0, http_client=client
            )
        )
    finally:
        client.close()


def send(events: SingleEvents, identifier: str = IDENTIFIER) -> Outcome:
    event = MeterEvent(
        id=1,
        event_name="ai_suggestion",
        customer="cus_ada",
        identifier=identifier,
        payload={"stripe_customer_id": "cus_ada", "value": "3"},
        timestamp=datetime(2026, 11, 21, tzinfo=UTC),
    )
    return events.create(event, idempotency_key=f"{identifier}:0")


def send_once(base: str, **options: Any) -> Outcome:
    with events_at(base, **options) as events:
        return send(events)


def test_the_scripts_themselves_can_lead_to_an_accepted_event() -> None:
    with serving(saying(answer(ACCEPTED_JSON))) as wire:
        assert send_once(f"http://{wire.address}").kind is OutcomeKind.ACCEPTED


# Never connected: proven


def assert_proves_nothing_was_sent(outcome: Outcome) -> None:
    assert (outcome.kind, outcome.heard, outcome.code) == (OutcomeKind.NOT_PROCESSED, False, "unreachable")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_refused(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert_proves_nothing_was_sent(send_once(f"{scheme}://127.0.0.1:{port}"))


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)  # a real look-up would leave this machine
    assert_proves_nothing_was_sent(send_once("http://stripe.invalid"))


def test_connect_time_out() -> None:
    """A full backlog drops the SYN, as a firewall does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, _backlog_filled(deaf):
        assert_proves_nothing_was_sent(send_once(f"http://127.0.0.1:{deaf.getsockname()[1]}"))


@contextmanager
def _backlog_filled(listener: socket.socket) -> Iterator[None]:
    waiting: list[socket.socket] = []
    try:
        for _ in range(16):
            waiting.append(socket.socket())
            waiting[-1].settimeout(0.2)
            try:
                waiting[-1].connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this kernel takes connections beyond the backlog")
        yield
    finally:
        for one in waiting:
            one.close()


# Everything else: a doubt


def assert_is_a_doubt(outcome: Outcome) -> None:
    assert (outcome.kind, outcome.heard, outcome.code) == (OutcomeKind.UNKNOWN, False, "no_answer")


def _closed_at_once(connection: socket.socket) -> None:
    connection.recv(1, socket.MSG_PEEK)  # the connection stands and the request is on its way, or nothing is shown


def _reset_at_once(connection: socket.socket) -> None:
    connection.recv(1, socket.MSG_PEEK)  # as above
    reset(connection)


def _reset_after_request(connection: socket.socket) -> None:
    request_of(connection)
    reset(connection)


def _mute(connection: socket.socket) -> None:
    request_of(connection)
    with suppress(TimeoutError):
        connection.recv(1)


def _stalled_body(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(answer(ACCEPTED_JSON[:10], length=len(ACCEPTED_JSON)))
    with suppress(TimeoutError):
        connection.recv(1)


BROKEN_GZIP = gzip.compress(ACCEPTED_JSON)[:20] + b"garbage that is not deflate"


@pytest.mark.parametrize(
    "conversation",
    [
        pytest.param(_closed_at_once, id="closed before the request was read"),
        pytest.param(_reset_at_once, id="reset before the request was read"),
        pytest.param(saying(b""), id="closed without an answer"),
        pytest.param(_reset_after_request, id="reset after the request"),
        pytest.param(_mute, id="no answer in time"),
        pytest.param(_stalled_body, id="body stalls"),
        pytest.param(saying(b"SSH-2.0-example\r\n"), id="no HTTP"),
        pytest.param(saying(answer(ACCEPTED_JSON[:-5], length=len(ACCEPTED_JSON))), id="truncated body"),
        pytest.param(saying(answer(ACCEPTED_JSON, length=5000)), id="Content-Length too large"),
        pytest.param(
            saying(answer(b"40\r\n" + ACCEPTED_JSON, "Transfer-Encoding: chunked", length=-1)), id="truncated chunk"
        ),
        pytest.param(saying(answer(BROKEN_GZIP, "Content-Encoding: gzip")), id="broken gzip"),
    ],
)
def test_after_the_connection_stands_a_failure_proves_nothing(conversation: Conversation) -> None:
    with serving(conversation) as wire:
        assert_is_a_doubt(send_once(f"http://{wire.address}", read_timeout_s=0.3))
        assert wire.connection_count == 1, "one call is one request"


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_a_redirect_is_not_followed(status: str) -> None:
    with serving(saying(answer(ACCEPTED_JSON))) as target:
        head = f"Location: http://{target.address}/v1/billing/meter_events"
        with serving(saying(answer(b"", head, status=f"{status} Moved"))) as wire:
            outcome = send_once(f"http://{wire.address}")
        assert (outcome.kind, outcome.heard, outcome.status) == (OutcomeKind.UNKNOWN, True, int(status))
        assert target.connection_count == 0


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(answer(ACCEPTED_JSON, length=20), id="Content-Length too small"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="truncated head"),
        pytest.param(answer(ACCEPTED_JSON.replace(b"ada", b"bob")), id="about another event"),
        pytest.param(answer(b"\xff\xfe"), id="no UTF-8"),
    ],
)
def test_an_answer_that_is_not_the_whole_of_ours_proves_nothing(reply: bytes) -> None:
    with serving(saying(reply)) as wire:
        assert send_once(f"http://{wire.address}").kind is OutcomeKind.UNKNOWN


# Connections that are used again


def test_a_kept_connection_is_used_again_and_its_loss_is_a_doubt() -> None:
    """The far side may have read the second request before it went: it is not sent on another connection."""
    requests: list[bytes] = []

    def twice(connection: socket.socket) -> None:
        requests.append(request_of(connection))
        connection.sendall(answer(ACCEPTED_JSON))
        requests.append(request_of(connection))
        reset(connection)

    with serving(twice, saying(answer(ACCEPTED_JSON))) as wire, events_at(f"http://{wire.address}") as events:
        assert send(events).kind is OutcomeKind.ACCEPTED
        assert_is_a_doubt(send(events))
        assert (wire.connection_count, len(requests)) == (1, 2)
        assert send(events).kind is OutcomeKind.ACCEPTED


def test_a_connection_closed_while_idle_is_replaced() -> None:
    with (
        serving(saying(answer(ACCEPTED_JSON)), saying(answer(ACCEPTED_JSON))) as wire,
        events_at(f"http://{wire.address}") as events,
    ):
        assert send(events).kind is OutcomeKind.ACCEPTED
        assert wire.closed.acquire(timeout=5)
        assert send(events).kind is OutcomeKind.ACCEPTED
        assert wire.connection_count == 2


def test_a_lost_connection_whose_replacement_is_refused_proves_that_this_attempt_was_not_sent() -> None:
    with serving(saying(answer(ACCEPTED_JSON))) as wire:
        base = f"http://{wire.address}"
        with events_at(base) as events:
            assert send(events).kind is OutcomeKind.ACCEPTED
            wire.close()
            assert_proves_nothing_was_sent(send(events))


PARTING = answer(b"{}", status="408 Request Timeout")
"""What a proxy says to a connection that has been idle for too long."""


def test_what_follows_an_answer_at_once_is_nobodys_answer() -> None:
    def conversation(connection: socket.socket) -> None:
        for more in (PARTING, b""):
            request_of(connection)
            connection.sendall(answer(ACCEPTED_JSON) + more)

    with serving(conversation) as wire, events_at(f"http://{wire.address}") as events:
        assert [send(events).kind for _ in range(2)] == [OutcomeKind.ACCEPTED] * 2


def test_what_comes_on_an_idle_connection_is_nobodys_answer() -> None:
    idle, parted = threading.Event(), threading.Event()

    def conversation(connection: socket.socket) -> None:
        saying(answer(ACCEPTED_JSON))(connection)
        idle.wait(5)
        connection.sendall(PARTING)
        parted.set()
        with suppress(TimeoutError):
            connection.recv(1)

    with serving(conversation, saying(answer(ACCEPTED_JSON))) as wire, events_at(f"http://{wire.address}") as events:
        assert send(events).kind is OutcomeKind.ACCEPTED
        idle.set()
        assert parted.wait(5)
        assert send(events).kind is OutcomeKind.ACCEPTED
        assert wire.connection_count == 2


# Bodies


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(answer(gzip.compress(ACCEPTED_JSON), "Content-Encoding: gzip"), id="gzip"),
        pytest.param(answer(ACCEPTED_JSON[:-1] + b', "more": "' + b"x" * 1_000_000 + b'"}'), id="1 MB"),
        pytest.param(answer(ACCEPTED_JSON, length=-1), id="until the connection ends"),
        pytest.param(
            answer(
                b"%x\r\n%b\r\n0\r\n\r\n" % (len(ACCEPTED_JSON), ACCEPTED_JSON), "Transfer-Encoding: chunked", length=-1
            ),
            id="chunked",
        ),
    ],
)
def test_whole_answers_in_other_shapes(reply: bytes) -> None:
    with serving(saying(reply)) as wire:
        assert send_once(f"http://{wire.address}").kind is OutcomeKind.ACCEPTED


@pytest.mark.parametrize("identifier", ["ws-日本-1", "ws-Zoë-1", "ws-a\nb-1", " ws-1"])
def test_an_identifier_that_no_header_carries_is_sent_all_the_same(identifier: str) -> None:
    heard: list[bytes] = []

    def conversation(connection: socket.socket) -> None:
        heard.append(request_of(connection))
        connection.sendall(answer(ACCEPTED_JSON.replace(IDENTIFIER.encode(), json.dumps(identifier)[1:-1].encode())))

    with serving(conversation) as wire, events_at(f"http://{wire.address}") as events:
        assert send(events, identifier).kind is OutcomeKind.ACCEPTED
    key = next(line for line in heard[0].split(b"\r\n") if line.lower().startswith(b"idempotency-key:"))
    assert len(key.split(b": ")[1]) == 64


def test_netrc_is_not_asked_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password example\n")
    monkeypatch.setenv("NETRC", str(netrc))
    heard: list[bytes] = []

    def conversation(connection: socket.socket) -> None:
        heard.append(request_of(connection))
        connection.sendall(answer(ACCEPTED_JSON))

    with serving(conversation) as wire:
        assert send_once(f"http://{wire.address}").kind is OutcomeKind.ACCEPTED
    assert b"Authorization: Bearer sk_test_example\r\n" in heard[0]


# TLS


def _tls_mute(connection: socket.socket) -> None:
    connection.recv(65536)
    with suppress(TimeoutError):
        connection.recv(1)


def _tls_garbage(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 this is no TLS\r\n\r\n")


def _tls_closed(connection: socket.socket) -> None:
    connection.recv(65536)


def _tls_reset(connection: socket.socket) -> None:
    connection.recv(65536)
    reset(connection)


@pytest.mark.parametrize("conversation", [_tls_mute, _tls_garbage, _tls_closed, _tls_reset])
def test_a_handshake_that_fails_is_a_doubt(conversation: Conversation) -> None:
    """TCP stood: an interceptor may have answered, and only "never connected" is proof."""
    with serving(conversation) as wire:
        assert_is_a_doubt(send_once(f"https://{wire.address}", read_timeout_s=0.3))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a fresh key and a self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=example", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(path / "key.pem"), "-out", str(path / "certificate.pem")]
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)  # noqa: S607 -- from PATH
    return path / "certificate.pem"


def _over_tls(certificate: Path, conversation: Conversation) -> Conversation:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def wrapped(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            conversation(secured)

    return wrapped


def test_a_certificate_in_the_sdks_bundle_is_trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe, "ca_bundle_path", str(certificate))
    with serving(_over_tls(certificate, saying(answer(ACCEPTED_JSON)))) as wire:
        assert send_once(f"https://{wire.address}").kind is OutcomeKind.ACCEPTED


def test_any_other_certificate_is_not(certificate: Path) -> None:
    with serving(_over_tls(certificate, saying(answer(ACCEPTED_JSON)))) as wire:
        assert_is_a_doubt(send_once(f"https://{wire.address}"))


def test_nor_is_one_for_another_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe, "ca_bundle_path", str(certificate))
    with serving(_over_tls(certificate, saying(answer(ACCEPTED_JSON)))) as wire:
        assert_is_a_doubt(send_once(f"https://localhost:{wire.address.split(':')[1]}"))


# Proxies


BASE = "https://api.stripe.com"


def test_the_environments_proxy_is_asked_for_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    def refusing(connection: socket.socket) -> None:
        heard.append(request_of(connection))
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    with serving(refusing) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://some%40body:example@{proxy.address}")
        assert_is_a_doubt(send_once(BASE))
    assert heard[0].startswith(b"CONNECT api.stripe.com:443 HTTP/1.")
    assert f"basic {base64.b64encode(b'some@body:example').decode()}".lower() in heard[0].decode().lower()


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_that_cannot_be_reached_is_a_doubt(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}127.0.0.1:{port}")
    assert_is_a_doubt(send_once(BASE))


@pytest.mark.parametrize("no_proxy", ["api.stripe.com", ".stripe.com", "*"])
def test_no_proxy_names_hosts_that_are_called_directly(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(host: str, *_: object) -> None:
        assert host == "api.stripe.com"
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    assert_proves_nothing_was_sent(send_once(BASE))


def test_this_machine_is_never_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(saying(answer(ACCEPTED_JSON))) as wire:
        assert send_once(f"http://{wire.address}").kind is OutcomeKind.ACCEPTED


def test_a_proxy_of_another_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY"):
        Urllib3Client(BASE, connections_max=1, connect_timeout_s=1, read_timeout_s=1)
