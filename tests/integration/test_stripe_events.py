"""The store of Stripe's events: each once, with one effect, however it came and whoever acts on it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from meterctl.actions.stripe_events import EventActions, Handler
from meterctl.core.stripe_event import StripeEvent, read_event
from meterctl.errors import UnavailableError
from meterctl.postgres.stripe_events import EventSelection, PostgresStripeEvents
from meterctl.sandbox.local_stripe.faults import Fault, FaultKind
from world import START, World

ACCOUNT = "acct_sandboxexample"


def event(number: int = 1, **changes: Any) -> StripeEvent:
    document = {
        "id": f"evt_{number}",
        "object": "event",
        "type": "invoice.paid",
        "created": int(START.timestamp()) - number,
        "livemode": False,
        "data": {"object": {}},
    }
    return read_event(document | changes)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as opened:
        opened.execute("CREATE TABLE effects (event_id text)")
        yield opened


def effect(connection: psycopg.Connection, *, meanwhile: Callable[[], object] = lambda: None) -> Handler:
    """A handler that leaves one line for each time it is called."""

    def handle(one: StripeEvent) -> str:
        connection.execute("INSERT INTO effects VALUES (%s)", [one.id])
        meanwhile()
        return "done"

    return handle


def actions(connection: psycopg.Connection, handler: Handler, *, account: str | None = ACCOUNT) -> EventActions:
    return EventActions(
        store=PostgresStripeEvents(connection),
        handlers={"invoice.paid": handler},
        prepare=lambda one: one,
        account=account,
        livemode=False,
    )


def effects(connection: psycopg.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT event_id FROM effects ORDER BY 1")]


def kept(connection: psycopg.Connection) -> tuple[str, int, str | None, str | None]:
    text = "SELECT status, attempt_count, outcome, error FROM meterctl.stripe_events"
    (row,) = connection.execute(text).fetchall()
    return row


def test_an_event_is_kept_once_whatever_brought_it(connection: psycopg.Connection) -> None:
    store = PostgresStripeEvents(connection)
    assert store.store([event(1), event(2), event(1)], source="pull") == ["evt_1", "evt_2"]
    assert store.store([event(1), event(3)], source="file") == ["evt_3"]
    new = connection.execute("SELECT meterctl.store_stripe_event(%s)", [Jsonb(event(2).payload)]).fetchone()
    assert new == (False,)
    assert store.ids(EventSelection()) == ["evt_3", "evt_2", "evt_1"]


def test_acting_twice_has_one_effect_unless_it_is_forced(connection: psycopg.Connection) -> None:
    PostgresStripeEvents(connection).store([event()], source="pull")
    acting = actions(connection, effect(connection))
    assert acting.act("evt_1").status == "processed"
    again = acting.act("evt_1")
    assert (again.status, again.was_done) == ("processed", True)
    assert effects(connection) == ["evt_1"]
    acting.act("evt_1", again=True)
    assert effects(connection) == ["evt_1", "evt_1"]
    assert kept(connection) == ("processed", 2, "done", None)


def test_of_two_that_act_at_once_the_second_waits_and_finds_it_done(
    connection: psycopg.Connection, database_url: str
) -> None:
    """The second one has read the event as waiting before the first one commits."""
    PostgresStripeEvents(connection).store([event()], source="pull")
    found: list[bool] = []

    def second() -> None:
        with psycopg.connect(database_url, autocommit=True) as other:
            found.append(actions(other, effect(other)).act("evt_1").was_done)

    thread = threading.Thread(target=second)

    def start_and_wait_until_it_waits() -> None:
        thread.start()
        with psycopg.connect(database_url, autocommit=True) as looking:
            while not looking.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
                pass

    actions(connection, effect(connection, meanwhile=start_and_wait_until_it_waits)).act("evt_1")
    thread.join()
    assert found == [True]
    assert effects(connection) == ["evt_1"]


@pytest.mark.parametrize("error", [KeyError("customer"), RuntimeError("first\nsecond"), ValueError()])
def test_what_fails_leaves_no_effect_and_its_reason(connection: psycopg.Connection, error: Exception) -> None:
    PostgresStripeEvents(connection).store([event()], source="pull")

    def fails() -> None:
        raise error

    assert actions(connection, effect(connection, meanwhile=fails)).act("evt_1").status == "failed"
    assert effects(connection) == []
    status, attempt_count, _, reason = kept(connection)
    assert (status, attempt_count, reason) == ("failed", 1, str(error).split("\n")[0] or "ValueError")
    assert actions(connection, effect(connection)).act("evt_1").status == "processed"
    assert kept(connection) == ("processed", 2, "done", None)


def test_an_effect_that_the_database_refuses_leaves_the_reason(connection: psycopg.Connection) -> None:
    PostgresStripeEvents(connection).store([event()], source="pull")
    connection.execute("ALTER TABLE effects ADD CHECK (event_id <> 'evt_1')")
    assert "check constraint" in (actions(connection, effect(connection)).act("evt_1").outcome or "")
    assert kept(connection)[0] == "failed"


@pytest.mark.parametrize("changes", [{"livemode": True}, {"account": "acct_another"}, {"type": "invoice.voided"}])
def test_what_is_not_ours_to_handle_is_ignored(connection: psycopg.Connection, changes: dict[str, Any]) -> None:
    PostgresStripeEvents(connection).store([event(**changes)], source="pull")
    assert actions(connection, effect(connection)).act("evt_1").status == "ignored"
    assert effects(connection) == []


def test_our_own_account_and_an_unknown_one_are_no_reason(connection: psycopg.Connection) -> None:
    store = PostgresStripeEvents(connection)
    store.store([event(1, account=ACCOUNT), event(2, account="acct_another")], source="pull")
    assert actions(connection, effect(connection)).act("evt_1").status == "processed"
    assert actions(connection, effect(connection), account=None).act("evt_2").status == "processed"


@pytest.mark.parametrize("text", ["nul \0 here", "half \ud83d here", "whole 😀 here", "back \\u0000 slash"])
def test_any_text_can_be_kept(connection: psycopg.Connection, text: str) -> None:
    """PostgreSQL's jsonb holds neither NUL nor half a character."""
    one = event(data={"object": {text: [text]}})
    PostgresStripeEvents(connection).store([one], source="file")
    (row,) = connection.execute("SELECT payload -> 'data' -> 'object' FROM meterctl.stripe_events").fetchall()
    clean = text.replace("\0", "").replace("\ud83d", "?")
    assert row[0] == {clean: [clean]}


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"id": "evt_1"},
        {"id": "", "object": "event", "type": "t", "created": 1, "livemode": False},
        {"id": "evt_1", "object": "list", "type": "t", "created": 1, "livemode": False},
        {"id": "evt_1", "object": "event", "type": "t", "created": "1", "livemode": False},
        {"id": "evt_1", "object": "event", "type": "t", "created": 1, "livemode": "false"},
        {"id": "evt_1", "object": "v2.core.event", "type": "t", "created": 1, "livemode": False},
    ],
)
def test_an_endpoint_that_stores_something_else_is_told(
    connection: psycopg.Connection, payload: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no event of Stripe's"):
        connection.execute("SELECT meterctl.store_stripe_event(%s)", [Jsonb(payload)])


def test_an_endpoint_needs_no_right_but_to_call_the_function(connection: psycopg.Connection) -> None:
    with endpoint(connection):
        assert connection.execute("SELECT meterctl.store_stripe_event(%s)", [Jsonb(event().payload)]).fetchone() == (
            True,
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM meterctl.stripe_events")


@contextmanager
def endpoint(connection: psycopg.Connection) -> Iterator[None]:
    """Be a role that may do nothing but what docs/webhooks.md grants."""
    connection.execute("DROP ROLE IF EXISTS endpoint; CREATE ROLE endpoint; GRANT USAGE ON SCHEMA meterctl TO endpoint")
    connection.execute("GRANT EXECUTE ON FUNCTION meterctl.store_stripe_event(jsonb, bytea, text) TO endpoint")
    connection.execute("SET ROLE endpoint")
    yield
    connection.execute("RESET ROLE; DROP OWNED BY endpoint; DROP ROLE endpoint")


# Reading the lists


def test_a_pull_begins_a_day_before_the_last_one_ended(world: World) -> None:
    """What lists show late is found, if that is not later than a day."""
    world.pull()
    for hours in (1, 25):
        world.stripe.emit("invoice.payment_failed", {"object": "invoice"}, created=world.time.now())
        world.time.advance(timedelta(hours=hours))
    assert len(world.pull()) == 2
    late = world.time.now() - timedelta(hours=23)
    world.stripe.emit("invoice.payment_failed", {"object": "invoice"}, created=late)
    assert len(world.pull()) == 1
    assert world.pull() == []


def test_what_is_pulled_is_known_to_be_the_keys_accounts(world: World) -> None:
    """In a copy of this database, under another account's key, it must not be acted on."""
    world.stripe.emit("invoice.payment_failed", {"object": "invoice"})
    world.pull()
    assert [row["account"] for row in world.rows("SELECT account FROM meterctl.stripe_events")] == [ACCOUNT]


def test_pages_are_read_to_the_end(world: World) -> None:
    for _ in range(230):
        world.stripe.emit("invoice.payment_failed", {"object": "invoice"})
        world.stripe.emit_thin("v1.billing.meter.no_meter_found", {})
    world.pull()
    (row,) = world.rows("SELECT count(*) AS count FROM meterctl.stripe_events")
    assert row["count"] == 460


def test_a_list_that_breaks_off_is_read_anew(world: World) -> None:
    """The first page is kept, the cursor is not moved."""
    for _ in range(120):
        world.stripe.emit("invoice.payment_failed", {"object": "invoice"})
    world.stripe.add_fault(Fault(kind=FaultKind.RESET, operation="events.list", nth=2))
    with pytest.raises(UnavailableError):
        world.pull()
    count = "SELECT count(*) AS count FROM meterctl.stripe_events"
    assert (world.rows(count)[0]["count"], world.rows("SELECT FROM meterctl.cursors")) == (100, [])
    world.pull()
    assert world.rows(count)[0]["count"] == 120


def test_a_type_that_is_handled_from_today_on_is_read_from_the_beginning(world: World) -> None:
    subscriptions = ["customer.subscription.created"]
    world.config["webhooks.handle"] = subscriptions
    world.stripe.emit("invoice.payment_failed", {"object": "invoice"})
    world.pull()
    world.time.advance(timedelta(days=20))
    world.pull()
    world.config["webhooks.handle"] = [*subscriptions, "invoice.payment_failed"]
    assert len(world.pull()) == 1
