"""Schedules made to break the books: hostile rows, odd answers, hung peers, changed configuration, wrong clocks.

A test is named by what must hold. Whatever a row, a lane, an answer or a machine does: no unit is billed twice, none
is lost in silence, and one of them holds up nobody else.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli.conftest import Shell
from meterctl.actions.answers import Answers
from meterctl.actions.collect import row_window
from meterctl.actions.deliver import Delivery, DeliveryLimits
from meterctl.actions.report import MeterJob, Report, ReportOptions, ReportResult
from meterctl.actions.tally import Tally
from meterctl.cli.job_retries import with_job_retries
from meterctl.clock import SystemHostClock
from meterctl.core.allowance import Allowance
from meterctl.core.model import Claim, Heard, MeterEvent, Outcome, OutcomeKind, State
from meterctl.core.pacing import OutageWatch, TokenBucket
from meterctl.dispatch import SerialDispatcher, ThreadedDispatcher
from meterctl.errors import ConfigurationError, ExitCode, MeterctlError, UnavailableError
from meterctl.ports import ClaimRequest, Dispatcher, Page, PageKey
from meterctl.postgres.check import require_fit
from meterctl.postgres.connect import connect, transaction
from meterctl.postgres.ledger import PostgresMeterLedger, undeliverable
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.rows import LedgerOwner, PostgresRows
from meterctl.postgres.runs import claim_ledger, start_run
from meterctl.render.report import ReportDocument
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from meterctl.settings import RowsMeter, Settings, load_settings
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents
from world import World, ended_and_told, settling

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

LOOKUP = """
[lookups.individual]
table = "subscriptions"
subject = "user_id"
customer = "stripe_customer_id"
started_at = "started_at"
ended_at = "ended_at"
"""


def meter(key: str, **changes: str) -> str:
    """A `rows` meter in TOML."""
    fields = {
        "source": "rows",
        "formula": "sum",
        "table": "usage_events",
        "id": "id",
        "value": "quantity",
        "occurred_at": "created_at",
        "reported_at": "stripe_reported_at",
    } | changes
    lines = "".join(f'{name} = "{value}"\n' for name, value in fields.items())
    return f'\n[meters.{key}]\n{lines}payers = [{{ lookup = "individual", column = "user_id" }}]\n'


def configured(world: World, tmp_path: Path, *meters: str) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(LOOKUP + "".join(meters))
    environ = {
        "DATABASE_URL": world.database_url,
        "STRIPE_SECRET_KEY": world.stripe.api_key,
        "METERCTL_STRIPE_API_BASE": world.stripe.url,
    }
    return load_settings(config_file=path, environ=environ, flags={})


Opened = Callable[[MeterJob], MeterJob]


def run(
    world: World,
    settings: Settings | None = None,
    *,
    opened: Opened = lambda job: job,
    jitter: Callable[[], float] = lambda: 0.5,
    **options: Any,
) -> ReportResult:
    """Report all enabled meters once, as the command does, with the world's clock; `opened` may wrap each job."""
    settings = settings or world.settings()
    owner = LedgerOwner(account=world.stripe.account_id, livemode=False)
    events = SingleEvents(stripe_client(settings.stripe, connections_max=1, read_timeout_s=1.0))
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        claim_ledger(connection, owner, world.time.now())
        run_id = start_run(connection, "report", owner, world.time.now())
        with MeterLocks(world.database_url, run_label="test", host_clock=world.time) as locks:
            report = Report(
                options=ReportOptions(**options),
                livemode=False,
                grace=HOUR,
                clock=world.time,
                host_clock=world.time,
                locks=locks,
                dispatcher=lambda: serial(events, world),
                stop=world.stop,
                jitter=jitter,
                allowance=Allowance(options.get("limit")),
                undeliverable=lambda: undeliverable(
                    connection, [one.event_name for one in settings.enabled_meters.values()]
                ),
            )
            result = report.run(
                {
                    one.event_name: partial(
                        lambda key: opened(job(settings, connection, owner, run_id, key, options)), key
                    )
                    for key, one in settings.enabled_meters.items()
                }
            )
        ended_and_told(connection, settings, run_id, result, world.time.now())
        return result


@contextmanager
def serial(events: SingleEvents, world: World) -> Iterator[Dispatcher]:
    yield SerialDispatcher(events, TokenBucket(None), world.time)


def job(
    settings: Settings,
    connection: psycopg.Connection,
    owner: LedgerOwner,
    run_id: int,
    key: str,
    options: dict[str, Any],
) -> MeterJob:
    one = settings.meters[key]
    assert isinstance(one, RowsMeter)
    event_names = [each.event_name for each in settings.meters.values()]
    source = PostgresRows(connection, key, one, settings.lookups, owner, event_names=event_names)
    ledger = PostgresMeterLedger(
        connection,
        meter=key,
        event_name=one.event_name,
        run_id=run_id,
        stamp_rows=lambda row_ids, now: source.stamp(row_ids, now=now),
        row_ids=options.get("row_ids", ()),
    )
    return MeterJob(
        event_name=one.event_name, source=source, ledger=ledger, **settling(connection, settings, key, run_id)
    )


def stamped_units(world: World) -> Any:
    text = "SELECT coalesce(sum(quantity), 0) AS n FROM usage_events WHERE stripe_reported_at IS NOT NULL"
    return world.rows(text)[0]["n"]


# What a row, an id or a name can do


def test_two_rows_of_one_id_are_never_both_stamped_for_one_event(world: World) -> None:
    """Partitioned tables are unique by (id, time) at most: an id may come twice."""
    world.connection.execute(
        "ALTER TABLE usage_events ALTER id DROP IDENTITY; ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey"
    )
    world.customer("ada")
    world.customer("bob")
    world.usage("ada", 3, id=7, ago=2 * HOUR)
    world.usage("bob", 5, id=7, ago=HOUR)
    results = [world.run(), world.run()]
    assert stamped_units(world) == world.stripe_total(), "a stamped row is a billed row"
    assert ExitCode.PROBLEMS in [result.exit_code for result in results], "the other is named"


def test_a_new_row_under_a_used_id_is_not_stamped_for_the_old_event(world: World) -> None:
    """The table is emptied while events wait for Stripe, and counts from 1 again."""
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    world.run()
    world.connection.execute("TRUNCATE usage_events RESTART IDENTITY")
    world.usage("ada", 9, ago=timedelta(minutes=5))
    world.stripe.start_listening()
    world.run()
    assert world.stripe_total() == 3
    assert stamped_units(world) == 0, "the new row's 9 units were not billed"


def test_events_of_a_former_table_stamp_nothing_in_the_new_one(world: World, tmp_path: Path) -> None:
    """The meter moves to another table under another key while events of the old one are due."""
    world.connection.execute("CREATE TABLE usage_v2 (LIKE usage_events INCLUDING ALL)")
    world.customer("ada")
    row_id = world.usage("ada", 3)
    old = configured(world, tmp_path, meter("old", event_name="ai_suggestion"))
    world.stripe.stop_listening()
    run(world, old)
    world.stripe.start_listening()
    new = configured(world, tmp_path, meter("new", event_name="ai_suggestion", table="usage_v2", identifier="v2-{id}"))
    world.connection.execute(
        "INSERT INTO usage_v2 (id, workspace_id, user_id, quantity, created_at) OVERRIDING SYSTEM VALUE"
        " VALUES (%s, 'ws', 'ada', 9, %s)",
        [row_id, world.time.now() - HOUR],
    )
    with suppress(MeterctlError):
        run(world, new, limit=1)
        run(world, new)
    stamped = world.rows("SELECT coalesce(sum(quantity), 0) AS n FROM usage_v2 WHERE stripe_reported_at IS NOT NULL")
    assert stamped[0]["n"] in {0, world.stripe_total() - 3}


def test_a_renamed_key_bills_no_row_twice(world: World, tmp_path: Path) -> None:
    """The same table and event_name under another key, with another template: rows with open events are known."""
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    run(world, configured(world, tmp_path, meter("old", event_name="ai_suggestion", identifier="{user_id}-{id}")))
    world.stripe.start_listening()
    with suppress(ConfigurationError):
        run(world, configured(world, tmp_path, meter("ai_suggestion")))
    assert world.stripe_total() <= 3


def test_one_table_under_two_names_shares_no_stamp_in_silence(world: World, tmp_path: Path) -> None:
    """`usage_events` and `public.usage_events` are one table: a row stamped for one meter is lost to the other."""
    world.stripe.create_meter(event_name="second")
    world.customer("ada")
    world.usage("ada", 3)
    first = meter("ai_suggestion", identifier="first-{id}")
    second = meter("second", identifier="second-{id}", table="public.usage_events")
    with suppress(ConfigurationError):
        settings = configured(world, tmp_path, first, second)
        with connect(world.database_url) as connection:
            require_fit(connection, settings)
        run(world, settings)
        assert world.stripe_total() == 6, "both meters bill the row, or the configuration is refused"


def test_a_bad_row_with_a_used_identifier_is_named(world: World, tmp_path: Path) -> None:
    world.customer("ada")
    settings = configured(world, tmp_path, meter("ai_suggestion", identifier="{workspace_id}-{user_id}"))
    world.usage("ada", 3, ago=2 * HOUR)
    bad = world.usage("ada", "NaN")
    result = run(world, settings)
    assert result.totals.rejected == 1, "neither billed nor named: it left in silence"
    assert [e["source_row_id"] for e in world.events() if e["state"] == "rejected"] == [str(bad)]


def test_a_customer_id_too_long_for_an_index_holds_up_nobody(world: World) -> None:
    """Something else was written into the column: random, so that it does not compress."""
    world.customer("ada")
    world.connection.execute(
        "INSERT INTO subscriptions (user_id, stripe_customer_id)"
        " SELECT 'bad', string_agg(md5(n::text), '') FROM generate_series(1, 400) AS n"
    )
    world.usage("bad", 1)
    world.usage("ada", 3)
    result = world.run()
    assert (result.totals.reported, result.totals.rejected) == (1, 1)


def test_a_row_that_was_given_its_time_is_no_reused_id(world: World) -> None:
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    world.customer("ada")
    row_id = world.usage("ada", 3, created_at=None)
    assert "local:no_occurred_at" in world.run().totals.problems
    world.connection.execute("UPDATE usage_events SET created_at = %s WHERE id = %s", [world.time.now() - HOUR, row_id])
    assert "row_reused" not in world.run().totals.problems


def test_an_empty_id_does_not_make_the_pages_go_round(world: World) -> None:
    world.connection.execute(
        "ALTER TABLE usage_events ALTER id DROP IDENTITY; ALTER TABLE usage_events ALTER id TYPE text;"
        "ALTER TABLE usage_events ALTER created_at DROP NOT NULL"
    )
    world.customer("ada")
    for row_id in ("", "x"):
        world.insert(
            "usage_events", {"id": row_id, "workspace_id": "ws", "user_id": "ada", "quantity": 1, "created_at": None}
        )
    source, key, keys = world.rows_source(), None, list[PageKey]()
    while len(keys) < 10:
        page = source.collect(row_window(world.time.now(), recent=None), key, batch_size=1, now=world.time.now())
        key = page.next_key
        if key is None:
            break
        keys.append(key)
    assert len(keys) < 10


@pytest.mark.parametrize("kind", ["double precision", "real", "numeric", "bigint"])
def test_no_number_breaks_a_page(world: World, kind: str) -> None:
    world.customer("ada")
    world.connection.execute(f"ALTER TABLE usage_events ALTER quantity DROP DEFAULT, ALTER quantity TYPE {kind}")
    odd = {
        "double precision": ["NaN", "-Infinity", "1e308", "5e-324", "-0"],
        "real": ["NaN", "3e38", "1e-45"],
        "numeric": ["1e100000", "1e-16000", "-1e100000", "NaN"],
        "bigint": ["9223372036854775807", "-9223372036854775808"],
    }[kind]
    for value in odd:
        world.connection.execute(
            "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at) VALUES ('ws', 'ada', %s, %s)",
            [value, world.time.now() - HOUR],
        )
    world.usage("ada", 3)
    result = world.run()
    assert result.totals.reported + result.totals.rejected == len(odd) + 1
    assert world.stripe_total() == 3
    world.run()


def test_a_row_whose_stamp_is_refused_leaves_the_others_their_stamps(world: World) -> None:
    """A trigger of the application refuses one row: were the others unstamped too, each night would read them again."""
    world.customer("ada")
    poison = world.usage("ada")
    for _ in range(5):
        world.usage("ada")
    world.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not this one'; END$$;"
        f"CREATE TRIGGER refuse BEFORE UPDATE ON usage_events FOR EACH ROW WHEN (OLD.id = {poison})"
        " EXECUTE FUNCTION refuse()"
    )
    with psycopg.connect(world.database_url) as other:  # so that all stamps wait for the next night
        other.execute("SELECT FROM usage_events FOR UPDATE")
        world.run()
    world.run()
    unstamped = world.rows("SELECT id FROM usage_events WHERE stripe_reported_at IS NULL")
    assert [row["id"] for row in unstamped] == [poison]


# What Stripe, or whoever answers for it, can say


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


# Clocks, machines, signals


def test_a_database_clock_that_lags_sends_no_old_doubt_again(world: World, tmp_path: Path) -> None:
    """PostgreSQL's clock fell behind by 8 h: a doubt of 30 h looks like 22 h, and Stripe has forgotten the identifier.

    The run's first answer (whose account is it?) tells the time; nothing that rests on time may go out before.
    """
    with LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        shell = Shell(database_url=world.database_url, stripe=stripe, home=tmp_path)
        shell.usage(1, quantity=3)
        assert (shell.run("report-usage").code, shell.total) == (0, 3)
        world.connection.execute(  # as if the answer had been lost, 22 h ago by PostgreSQL's clock
            "UPDATE usage_events SET stripe_reported_at = NULL;"
            "UPDATE meterctl.meter_events SET state = 'in_doubt', ever_in_doubt = true, answers_heard = 0,"
            " accepted_at = NULL, settled_by = NULL, doubt_since = now() - interval '22 hours'"
        )
        stripe.clock.advance(30 * HOUR)
        finished = shell.run("report-usage")
        assert shell.total == 3, "billed twice"
        assert finished.code == ExitCode.UNAVAILABLE


def a_claim(n: int = 1) -> Claim:
    event = MeterEvent(
        id=n,
        event_name="m",
        customer=f"cus_{n}",
        identifier=f"i{n}",
        payload={"value": "1"},
        timestamp=datetime(2026, 11, 21, 2, tzinfo=UTC),
    )
    return Claim(
        event=event,
        run_id=1,
        attempt_count=1,
        answers_heard=0,
        claimed_from=State.PENDING,
        ever_in_doubt=False,
        source_row_id=None,
        quantity=Decimal(1),
        period_end=None,
    )


def test_a_stopped_run_does_not_sit_out_the_token_bucket() -> None:
    """SIGTERM under heavy throttling: claims that wait for their turn come back at once, not after minutes."""

    class Instant:
        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:  # noqa: ARG002 -- the port's
            return Outcome(kind=OutcomeKind.ACCEPTED, heard=True, status=200)

    clock = SystemHostClock()
    dispatcher = ThreadedDispatcher(Instant(), TokenBucket(1.0), clock, in_flight_max=4)
    dispatcher.submit(
        [a_claim(n) for n in range(10)], claimed_elapsed_s=clock.elapsed_s(), claimed_wall_s=clock.wall_s()
    )
    time.sleep(0.2)
    dispatcher.cancel_queued()
    started, heard = time.monotonic(), list[Heard]()
    while dispatcher.outstanding:
        heard += dispatcher.heard(timeout_s=0.1)
    dispatcher.close()
    assert len(heard) == 10
    assert time.monotonic() - started < 1.5


class AllAtOnce(SerialDispatcher):
    """Answers whatever was submitted in one go."""

    most = 0

    def heard(self, *, timeout_s: float) -> list[Heard]:
        self.most = max(self.most, self.outstanding)
        heard = super().heard(timeout_s=timeout_s)
        while self.outstanding:
            heard += super().heard(timeout_s=0.0)
        return heard


def test_claims_ahead_stay_within_their_bound_when_retries_come_due(world: World) -> None:
    """Claims are at most twice the calls in flight: retries and new events share that room."""
    for n in range(40):
        world.customer(f"c{n:02}")
        for _ in range(20):
            world.usage(f"c{n:02}")
    settings = world.settings()
    owner = LedgerOwner(account=world.stripe.account_id, livemode=False)
    world.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, times=60))
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        claim_ledger(connection, owner, world.time.now())
        opened = job(settings, connection, owner, 1, "ai_suggestion", {})
        opened.source.collect(row_window(world.time.now(), recent=None), None, batch_size=1000, now=world.time.now())
        events = SingleEvents(stripe_client(settings.stripe, connections_max=1, read_timeout_s=1.0))
        dispatcher = AllAtOnce(events, TokenBucket(100.0), world.time)
        watch = OutageWatch(started_s=world.time.elapsed_s())
        tally = Tally(event_name="ai_suggestion")
        with MeterLocks(world.database_url, run_label="test", host_clock=world.time) as lock:
            Delivery(
                ledger=opened.ledger,
                dispatcher=dispatcher,
                clock=world.time,
                host_clock=world.time,
                limits=DeliveryLimits(deadline_s=world.time.elapsed_s() + 3600, grace=HOUR, in_flight_max=10),
                allowance=Allowance(None),
                answers=Answers(tally=tally, livemode=False, watch=watch, jitter=lambda: 0.5),
                stop=world.stop,
                lock=lock,
            ).run()
    assert tally.reported == 800
    assert dispatcher.most <= 2 * 10


# One bad lane, one hung peer


def test_a_customer_that_always_fails_does_not_keep_other_meters_waiting(world: World, tmp_path: Path) -> None:
    """Night after night one customer of the first meter gets only 500s; the second meter is reported all the same."""
    world.stripe.create_meter(event_name="second")
    world.connection.execute("CREATE TABLE usage_v2 (LIKE usage_events INCLUDING ALL)")
    settings = configured(world, tmp_path, meter("ai_suggestion"), meter("second", table="usage_v2"))
    world.customer("bad")
    world.customer("ada")
    world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, customer="cus_bad", times=None))
    for _ in range(3):
        world.usage("ada")
        for _ in range(5):
            world.usage("bad")
        world.insert(
            "usage_v2",
            {"workspace_id": "ws", "user_id": "ada", "quantity": 1, "created_at": world.time.now() - HOUR},
        )
        run(world, settings)
        world.time.advance(DAY)
    assert world.stripe.totals().get(("ai_suggestion", "cus_ada")) == 3
    assert world.stripe.totals().get(("second", "cus_ada")) == 3


def test_a_failing_lane_as_long_as_the_limit_lets_others_in(world: World) -> None:
    """`--limit` nights: events of one customer that stay due must not use up the limit for ever."""
    world.customer("bad")
    world.customer("ada")
    for _ in range(60):
        world.usage("bad", ago=2 * HOUR)
    world.usage("ada", 3)
    world.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, customer="cus_bad", times=None))
    for _ in range(4):
        world.run(limit=60)
        world.time.advance(DAY)
    assert world.stripe_total() == 3


def test_a_hung_transaction_in_one_lane_holds_up_that_lane_only(world: World) -> None:
    """Another host was suspended between its claim and its COMMIT; its claim of ada's lane is undecided."""
    for name in ("ada", "bob"):
        world.customer(name)
        world.usage(name)
        world.usage(name)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    done: list[ReportResult] = []
    with psycopg.connect(world.database_url) as hung:
        hung.execute(
            "UPDATE meterctl.meter_events SET state = 'sending', claimed_from = 'pending', claimed_at = now(),"
            " doubt_since = now(), attempt_count = attempt_count + 1, run_id = 999"
            " WHERE id = (SELECT min(id) FROM meterctl.meter_events WHERE customer = 'cus_ada')"
        )
        thread = threading.Thread(target=lambda: done.append(world.run(max_duration=timedelta(seconds=2))), daemon=True)
        thread.start()
        thread.join(timeout=20)
        finished = not thread.is_alive()
        total = world.stripe.totals().get(("ai_suggestion", "cus_bob"))
        hung.rollback()
        thread.join(timeout=60)
    assert total == 2, "bob's events wait for ada's lane"
    assert finished


def test_a_hung_record_of_another_host_does_not_stop_the_night(world: World) -> None:
    """Another host was suspended between writing down ada's answer and its COMMIT: her row is locked, bob is not."""
    for name in ("ada", "bob"):
        world.customer(name)
        world.usage(name)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    world.connection.execute(
        "UPDATE meterctl.meter_events SET state = 'sending', claimed_from = 'pending', claimed_at = now(),"
        " doubt_since = now(), attempt_count = attempt_count + 1, run_id = 999 WHERE customer = 'cus_ada'"
    )
    with psycopg.connect(world.database_url) as hung:
        hung.execute("SELECT FROM meterctl.meter_events WHERE customer = 'cus_ada' FOR UPDATE")
        with suppress(UnavailableError):
            world.run()
        total = world.stripe.totals().get(("ai_suggestion", "cus_bob"))
        hung.rollback()
    assert total == 1


def test_a_transaction_whose_client_sleeps_ends_by_itself(database_url: str) -> None:
    """A suspended machine must not hold its locks until it wakes: the server ends its transaction."""
    with connect(database_url) as connection, transaction(connection):
        row = connection.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    assert row is not None
    assert row[0] != "0"


# Databases that fail at any step


class Mortal:
    """A ledger whose connection dies at its nth step: before it, or after its COMMIT but before we hear of that."""

    def __init__(self, ledger: PostgresMeterLedger, nth: int, *, after: bool) -> None:
        self._ledger, self._left, self._after = ledger, nth, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def step(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise UnavailableError("the connection is gone")
            result = method(*arguments, **named)
            if self._left == 0:
                raise UnavailableError("the connection is gone")
            return result

        return step


@pytest.mark.parametrize("after", [False, True], ids=["before", "after-commit"])
def test_a_database_that_goes_away_at_any_step_costs_no_unit(world: World, after: bool) -> None:  # noqa: FBT001 -- a table
    for name in ("ada", "bob"):
        world.customer(name)
    for nth in range(1, 14):
        for _ in range(2):
            world.usage("ada", 3)
            world.usage("bob", 2)
        if nth % 3 == 0:
            world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER))

        def mortal(opened: MeterJob, nth: int = nth) -> MeterJob:
            ledger = Mortal(opened.ledger, nth, after=after)  # type: ignore[arg-type] # the adapter itself
            return replace(opened, ledger=ledger)

        with suppress(UnavailableError):
            run(world, opened=mortal, batch_size=1)
    run(world)
    assert set(world.states()) == {"accepted"}
    assert world.stripe_total() == 13 * 2 * 5
    assert stamped_units(world) == 13 * 2 * 5
    world.assert_exact()


def test_two_runs_that_both_think_they_are_alone_bill_once(world: World) -> None:
    """The lock is courtesy: here the second run takes over in the midst of the first, again and again."""
    for n in range(4):
        world.customer(f"c{n}")
        for _ in range(5):
            world.usage(f"c{n}", 2)
    depth = 0

    class Interrupted:
        def __init__(self, events: Any) -> None:
            self._events = events

        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            nonlocal depth
            depth += 1
            if depth in {2, 5, 9}:
                world.connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                )
                with suppress(MeterctlError):
                    world.run()
            outcome: Outcome = self._events.create(event, idempotency_key=idempotency_key)
            return outcome

    world.wrap_events = Interrupted
    with suppress(MeterctlError):
        world.run()
    world.wrap_events = lambda events: events
    world.run()
    assert world.stripe_total() == 40
    assert set(world.states()) == {"accepted"}
    world.assert_exact()


# What costs time and memory


class Watched:
    """A source that counts its pages; each may take a while of the world's time."""

    def __init__(self, source: Any, world: World, *, page_takes: timedelta = timedelta(0)) -> None:
        self._source, self._world, self._page_takes = source, world, page_takes
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def collect(self, *arguments: Any, **named: Any) -> Page:
        self.pages += 1
        self._world.time.advance(self._page_takes)
        page: Page = self._source.collect(*arguments, **named)
        return page


def watching(world: World, seen: list[Watched], **options: Any) -> Opened:
    def opened(one: MeterJob) -> MeterJob:
        source = Watched(one.source, world, **options)
        seen.append(source)
        return replace(one, source=source)

    return opened


def free_rows(world: World, count: int) -> None:
    world.connection.execute(
        "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)"
        " SELECT 'ws', 'free', 1, %s::timestamptz + n * interval '1 second' FROM generate_series(1, %s) AS n",
        [world.time.now() - 10 * DAY, count],
    )


def test_a_small_limit_reads_free_rows_in_whole_pages(world: World) -> None:
    """`--limit 1` behind 2,000 rows of free users: four pages of 500, not 2,000 of one."""
    free_rows(world, 2_000)
    world.customer("ada")
    world.usage("ada")
    seen: list[Watched] = []
    assert run(world, opened=watching(world, seen), limit=1).totals.reported == 1
    assert seen[0].pages <= 10


def test_rows_to_look_at_leave_time_to_deliver(world: World) -> None:
    """Collecting alone uses up --max-duration, every night: what is in the ledger is delivered all the same."""
    free_rows(world, 200)
    world.customer("ada")
    world.usage("ada", 3, ago=11 * DAY)
    for _ in range(3):
        run(
            world,
            opened=watching(world, [], page_takes=timedelta(minutes=1)),
            batch_size=10,
            max_duration=timedelta(minutes=15),
        )
    assert world.stripe_total() == 3


def test_lanes_that_are_held_do_not_cost_a_small_limit_a_transaction_each(world: World) -> None:
    """500 lanes are held by the age of their doubt; `--limit 1` passes them by the hundred."""
    world.connection.execute(
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, source_row_id, state, ever_in_doubt, doubt_since, attempt_count, collected_at,"
        " livemode, account)"
        " SELECT 'ai_suggestion', 'ai_suggestion', 'held-' || n, 'a' || n, 1, 1, %(at)s, %(at)s, '{}', 'h' || n,"
        " 'in_doubt', true, %(at)s, 1, %(at)s, false, %(account)s FROM generate_series(1, 500) AS n",
        {"at": world.time.now() - 2 * DAY, "account": world.stripe.account_id},
    )
    world.customer("ada")
    world.usage("ada")
    ticks = 0

    class Counting:
        def __init__(self, ledger: Any) -> None:
            self._ledger = ledger

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ledger, name)

        def exchange(self, *arguments: Any, **named: Any) -> Any:
            nonlocal ticks
            ticks += 1
            return self._ledger.exchange(*arguments, **named)

    result = run(
        world,
        opened=lambda one: replace(one, ledger=Counting(one.ledger)),
        limit=1,
    )
    assert result.totals.reported == 1
    assert ticks <= 50


def test_a_claim_in_a_long_lane_reads_no_history(world: World) -> None:
    """One organisation pays for most: its claims go by the index of what is open, not through the ledger by id."""
    columns = (
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, source_row_id, state, accepted_at, settled_by, collected_at, livemode, account)"
        " SELECT 'ai_suggestion', 'ai_suggestion', %(name)s || n, 'cus_ada', 1, 1, %(at)s, %(at)s, '{}',"
        " %(name)s || n, %(state)s, %(accepted)s, %(by)s, %(at)s, false, 'acct' FROM generate_series(1, 20000) AS n"
    )
    at = world.time.now() - HOUR
    accepted = {"name": "old", "state": "accepted", "accepted": at, "by": "answer", "at": at}
    world.connection.execute(columns, accepted)
    world.connection.execute(columns, accepted | {"name": "new", "state": "pending", "accepted": None, "by": None})
    world.connection.execute("ANALYZE meterctl.meter_events")
    now = world.time.now()
    request = ClaimRequest(
        fresh_max=1,
        customers=("cus_ada",),
        scan_max=0,
        after_customer="",
        retry_ids=(),
        now=now,
        doubt_since=now,
        doubt_horizon=now - 23 * HOUR,
        expired_before=now - 35 * DAY,
    )
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        opened = job(world.settings(), connection, LedgerOwner(account="acct", livemode=False), 1, "ai_suggestion", {})
        assert len(opened.ledger.exchange([], request, now=now).claims) == 1
    read = "SELECT sum(idx_tup_read) AS n FROM pg_stat_user_indexes WHERE relname = 'meter_events'"
    while not (read_count := world.rows(read)[0]["n"]):  # a session hands in its counts when it ends, and not before us
        time.sleep(0.02)
    assert read_count < 1000


# What a run says about itself


def test_a_limited_run_that_sent_nothing_does_not_say_all_is_well(world: World) -> None:
    """A limit excuses what lies behind it, not claims that came back unsent."""
    world.customer("ada")
    world.usage("ada", 3)
    world.run_after_claim = lambda: world.time.advance(HOUR)
    result = world.run(limit=10)
    assert (result.totals.reported, result.totals.remaining) == (0, 1)
    assert result.exit_code is ExitCode.UNAVAILABLE


def test_a_row_asked_for_is_reported_whatever_else_is_due(world: World) -> None:
    """`--row X --limit 1` while another event waits in the ledger."""
    world.customer("ada")
    world.customer("bob")
    world.usage("ada", 1)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    row = world.usage("bob", 5)
    result = run(world, row_ids=(str(row),), limit=1)
    assert (result.totals.reported, world.stripe.totals()) == (1, {("ai_suggestion", "cus_bob"): 5})


def test_problems_of_a_run_that_died_are_news_to_the_next(world: World) -> None:
    """The run that found a bad row was killed before it could say so."""
    world.customer("ada")
    world.usage("ada", "NaN")
    world.usage("ada", 3)

    class Killed(BaseException):
        pass

    class Dies:
        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:  # noqa: ARG002 -- the port's
            raise Killed

    world.wrap_events = lambda _: Dies()
    with pytest.raises(Killed):
        world.run()
    world.wrap_events = lambda events: events
    assert world.run().exit_code is ExitCode.PROBLEMS


def test_a_retried_job_counts_what_is_held_once(world: World) -> None:
    """The same held event is seen by each attempt of the job."""
    world.customer("ada")
    world.usage("ada", 3)
    for nth in range(1, 6):
        world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, nth=nth))
    world.run()
    world.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'a person decides'")
    world.time.advance(DAY)
    world.customer("bob")
    world.usage("bob")
    world.stripe.stop_listening()

    def attempt() -> ReportDocument:
        result = world.run()
        world.stripe.start_listening()
        return ReportDocument(
            command="report",
            mode="test",
            dry_run=False,
            started_at=world.time.now(),
            run_id=1,
            exit_code=result.exit_code,
            tallies=result.tallies,
            totals=result.totals,
        )

    document = with_job_retries(attempt, retries=2, delay=timedelta(0))
    held = [problem for problem in document.totals.problems.values() if problem.code == "held"]
    assert [problem.count for problem in held] == [document.totals.held] == [1]


def test_events_that_no_meter_delivers_any_more_are_not_passed_over_in_silence(world: World) -> None:
    """The meter was renamed while an event was due: nothing will ever send it, and the run knows."""
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    world.stripe.create_meter(event_name="renamed")
    world.config["meters.ai_suggestion.event_name"] = "renamed"
    result = run(world)
    assert result.totals.reported or result.exit_code is not ExitCode.OK
