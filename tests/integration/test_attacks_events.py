"""Stripe's events by whoever wishes the ledger ill: what they say, when they come, how many they are."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from integration.test_error_reports import (
    NOT_FOUND,
    REPORT,
    billed,
    only,
    opened,
    problems,
    report,
    samples,
    settle,
    stamps,
)
from meterctl.core.spans import Span
from meterctl.errors import ExitCode, UnavailableError
from meterctl.postgres.forget import find_forgettable
from meterctl.postgres.forgetting import forget
from meterctl.postgres.recover import adopt_copy
from meterctl.postgres.settlements import put_in_doubt
from meterctl.sandbox.local_stripe.events import RelatedObject
from meterctl.sandbox.local_stripe.faults import Fault, FaultKind
from metered_devices import GAUGE, open_devices, organisation
from reconciling import reconcile
from world import World


def test_usage_of_a_customer_that_stripe_does_not_know_is_settled(world: World) -> None:
    world.stripe.set_options(unknown_customer="later")
    world.customer("ada", known=False)
    world.usage("ada", 7, ago=timedelta(hours=2))
    assert world.run().exit_code is ExitCode.OK
    report(world, "ws-ada-1")
    world.pull()
    settle(world)
    assert world.states() == ["rejected"]


# Another account's


def test_a_report_says_nothing_of_the_events_that_an_adopted_copy_brought_along(world: World) -> None:
    """The original billed them to its own account; this one may have an event of the same identifier."""
    billed(world, 7)
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        adopt_copy(connection, "a copy")
    world.stripe.set_options(account_id="acct_copyexample")
    world.run()
    report(world, "ws-ada-1")
    assert only(world.pull()).outcome == "foreign: 1 foreign"
    assert world.states() == ["accepted"]


def test_reports_of_test_mode_are_forgotten_with_it(world: World) -> None:
    """Live mode would tell of them, and ask for comparisons of what was accepted then."""
    billed(world, 7, 9, dropped=[0])
    report(world, "ws-ada-1", "somebody-elses", error_count=5)
    world.pull()
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        forgotten = forget(connection, find_forgettable(connection, world.settings()).parts)
    assert forgotten.left_test_mode
    assert not world.rows("SELECT FROM meterctl.error_reports")
    assert not samples(world)


# Errors that nobody names


def test_a_comparison_that_finds_the_lost_usage_does_not_hide_it(world: World) -> None:
    """It is named until the shortfall is put in doubt, whoever read the comparison's output."""
    billed(world, 7, 9, dropped=[1])
    report(world, error_count=1)
    world.pull()
    world.time.advance(timedelta(hours=2))
    assert reconcile(world).exit_code is ExitCode.DIFFERENCE
    assert only(opened(world)).problem.code == "unnamed_errors"
    lost = [event["id"] for event in world.events() if event["value"] == 9]
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        put_in_doubt(connection, lost, "Stripe has less", unstamp_rows=len)
    assert not opened(world)


def test_a_comparison_that_comes_too_early_proves_nothing(world: World) -> None:
    """Stripe's totals lag behind: what is not in them yet may have been dropped."""
    billed(world, 7, 9, dropped=[1])
    report(world, error_count=1)
    world.pull()
    found = only(opened(world))
    reconcile(world, span=Span(start=found.since, end=found.until))
    assert opened(world)
    world.time.advance(timedelta(hours=2))
    reconcile(world, span=Span(start=found.since, end=found.until))
    assert opened(world)


def test_a_comparison_that_finds_all_equal_closes_it(world: World) -> None:
    billed(world, 7, 9)
    report(world, error_count=1)
    world.pull()
    world.time.advance(timedelta(hours=2))
    assert reconcile(world).exit_code is ExitCode.OK
    assert not opened(world)


@pytest.fixture
def devices(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as world:
        yield world


def test_a_level_that_nobody_names_is_lost_until_a_later_one_takes_its_place(devices: World) -> None:
    """There is no total to compare it with: nothing else could close it."""
    organisation(devices, "acme", sensors=5)
    devices.run()
    gauge = next(meter.id for meter in devices.stripe.meters() if meter.event_name == GAUGE)
    about = RelatedObject(id=gauge, type="billing.meter", url="")
    devices.stripe.emit_thin(REPORT, {"reason": {"error_count": 1}}, related=about)
    devices.pull()
    assert only(opened(devices)).event_name == GAUGE
    devices.time.advance(timedelta(hours=1))
    devices.run()
    assert not opened(devices)


# Set aside, held up, called otherwise


def thin(event_id: str, **more: Any) -> dict[str, Any]:
    """A thin event as an endpoint gets it."""
    values = {"type": REPORT, "created": "2026-11-21T02:00:00.000Z", "livemode": False}
    return {"id": event_id, "object": "v2.core.event"} | values | more


def stored(world: World, document: str) -> None:
    """What an application's endpoint does."""
    world.connection.execute("SELECT meterctl.store_stripe_event(%s::jsonb)", [document])


def test_a_report_that_came_before_reports_were_handled_is_acted_on_once_they_are(world: World) -> None:
    """An endpoint stores all that Stripe sends, whatever is configured."""
    billed(world, 7, dropped=[0])
    stored(world, json.dumps(thin(report(world, "ws-ada-1"))))
    shipped, world.config = world.config, {"webhooks.handle": ["invoice.payment_failed"]}
    assert only(world.pull()).outcome == "not handled"
    world.config = shipped
    world.pull()
    assert world.states() == ["in_doubt"]


def test_a_key_that_may_not_fetch_leaves_the_report_for_one_that_may(world: World) -> None:
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1")
    world.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, operation="core_events.retrieve"))
    with pytest.raises(UnavailableError, match="403"):
        world.pull()
    world.pull()
    assert world.states() == ["in_doubt"]


def test_a_report_is_folded_in_whatever_the_meter_is_called_by_now(world: World) -> None:
    billed(world, 7, dropped=[0])
    world.connection.execute("UPDATE meterctl.meter_events SET meter = 'former'")
    report(world, "ws-ada-1")
    assert only(world.pull()).status == "processed"
    assert (world.states(), stamps(world)) == (["in_doubt"], [False])


def test_an_event_that_is_named_twice_is_not_called_foreign(world: World) -> None:
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1", "ws-ada-1:0")
    assert only(world.pull()).outcome == "ai_suggestion: 1 in doubt"
    assert [sample["verdict"] for sample in samples(world)] == [None]


def test_a_run_counts_what_may_be_ours_alone(world: World) -> None:
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1", "somebody-elses", "another's", error_count=5)
    world.pull()
    world.time.advance(timedelta(minutes=1))
    assert problems(world.run()) == {"error_report": 3}


def test_hashed_keys_are_looked_for_once_however_many_there_are(world: World) -> None:
    """Each look reads the events of three days."""
    billed(world, 7)
    report(world, *(f"{n:064x}" for n in range(300)))
    statements: list[str] = []
    world.wrap_connection = lambda connection: heard(connection, statements)
    assert only(world.pull()).outcome == "foreign: 300 foreign"
    assert sum("sha256" in statement for statement in statements) == 1


def heard(connection: psycopg.Connection, statements: list[str]) -> psycopg.Connection:
    """The connection, which notes what it is asked."""

    class Cursor(psycopg.Cursor[Any]):
        def execute(self, text: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]  # it is passed on
            statements.append(text if isinstance(text, str) else text.as_string(connection))
            return super().execute(text, *arguments, **options)

    connection.cursor_factory = Cursor
    return connection


# Garbled


@pytest.mark.parametrize(
    "more",
    [
        {"created": "infinity"},
        {"created": "-infinity"},
        {"created": "4713-01-01 BC"},
        {"object": "event", "created": -100_000_000_000},
        {"object": "event", "created": 1e15},
        {"id": " "},
        {"id": "evt_1\u00a0"},
        {"id": "e" * 10_000},
        {"type": "a\nb"},
    ],
    ids=lambda more: str(more)[:40],
)
def test_what_cannot_be_an_event_is_not_stored(world: World, more: dict[str, Any]) -> None:
    with pytest.raises(psycopg.DataError):
        stored(world, json.dumps(thin("evt_1") | more))


@pytest.mark.parametrize("value", ["1e5000", "[" * 2000 + "]" * 2000], ids=["a huge number", "a deep list"])
def test_an_event_that_cannot_be_read_fails_and_holds_up_no_other(world: World, value: str) -> None:
    billed(world, 7, dropped=[0])
    stored(world, json.dumps(thin("evt_1", created="2026-11-01T00:00:00Z", x="?")).replace('"?"', value))
    report(world, "ws-ada-1")
    assert [(acted.event.id == "evt_1", acted.status) for acted in world.pull()] == [
        (True, "failed"),
        (False, "processed"),
    ]
    assert world.states() == ["in_doubt"]


@pytest.mark.parametrize("number", [float("inf"), float("nan")], ids=str)
def test_a_listed_event_that_cannot_be_stored_holds_up_no_other(world: World, number: float) -> None:
    world.stripe.set_options(v2_list_has_data=True)
    billed(world, 7, dropped=[0])
    world.stripe.emit_thin(REPORT, {"reason": number})
    report(world, "ws-ada-1")
    assert only(world.pull()).status == "processed"
    assert world.states() == ["in_doubt"]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "x" * 100_000], ids=["NUL", "half a character", "long"])
def test_odd_words_in_a_report_do_not_hide_what_else_it_names(world: World, text: str) -> None:
    """Another system of the account may name its requests as it likes."""
    billed(world, 7, dropped=[0])
    names = [text[:80], "ws-ada-1"]
    errors = [{"error_message": text, "request": {"identifier": name}} for name in names]
    kinds = [{"code": NOT_FOUND, "error_count": 2, "sample_errors": errors}]
    world.stripe.emit_thin(REPORT, {"reason": {"error_count": 2, "error_types": kinds}})
    assert only(world.pull()).status == "processed"
    assert world.states() == ["in_doubt"]
