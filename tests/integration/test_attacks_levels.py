"""Levels under attack: subscriptions tables that lag, customers that change, input that nobody meant."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from meterctl.__main__ import main
from meterctl.core.level import LevelRequest
from meterctl.errors import ExitCode
from meterctl.postgres.connect import connect
from meterctl.postgres.gauge import PostgresGauge
from meterctl.postgres.ledger_admin import retry
from meterctl.sandbox.local_stripe import Fault, FaultKind
from metered_devices import COUNTER, GAUGE, add_sensors, level, open_devices, organisation, sent, switch_off
from world import World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def devices(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as world:
        world.config |= {f"meters.{COUNTER}.enabled": False}
        yield world


# Subscriptions tables that lag behind Stripe: a period has ended, and nobody has written down the next one


def test_a_level_behind_a_periods_end_is_not_the_old_periods(devices: World) -> None:
    start = devices.time.now()
    turn = start + HOUR + 20 * MINUTE
    organisation(devices, "acme", sensors=3, current_period_start=start - 30 * DAY, current_period_end=turn)
    devices.run()
    add_sensors(devices, "acme", 4)
    devices.time.advance(HOUR + 45 * MINUTE)
    devices.run()
    assert sent(devices, GAUGE) == [("cus_acme", Decimal(3), start), ("cus_acme", Decimal(7), turn)]


def test_a_level_of_the_next_period_is_not_late_for_the_last_one(devices: World) -> None:
    """Nobody must bill it by hand."""
    now = devices.time.now()
    organisation(devices, "acme", sensors=3, current_period_start=now - 40 * DAY, current_period_end=now - 10 * DAY)
    result = devices.run()
    assert (result.exit_code, result.totals.late) == (ExitCode.OK, 0)


def test_a_level_of_the_next_period_does_not_replace_the_last_ones(devices: World) -> None:
    start = devices.time.now()
    organisation(
        devices, "acme", sensors=3, current_period_start=start - 30 * DAY, current_period_end=start + 30 * MINUTE
    )
    devices.stripe.add_fault(Fault(kind=FaultKind.RESET, times=10))
    devices.run()
    devices.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'foreign'")
    devices.stripe.clear_faults()
    devices.time.advance(2 * HOUR)
    devices.run()
    devices.connection.execute("UPDATE meterctl.meter_events SET held_reason = NULL")
    devices.run()
    assert devices.states() == ["accepted", "accepted"]


def test_a_days_step_begins_anew_where_a_period_does(devices: World) -> None:
    """Known as the new period's start or only as the old one's end; in whole seconds, inside the new period."""
    devices.config |= {f"meters.{GAUGE}.step": "1d"}
    midnight, turn = devices.time.now() - 2 * HOUR, devices.time.now() - HOUR
    fraction = turn + timedelta(milliseconds=500)
    for name, start, end in (
        ("new", turn, turn + 30 * DAY),
        ("old", turn - 30 * DAY, turn),
        ("part", fraction, fraction + 30 * DAY),
        ("running", turn - DAY, turn + 29 * DAY),
    ):
        organisation(devices, name, sensors=3, current_period_start=start, current_period_end=end)
    devices.run()
    assert {who: at for who, _, at in sent(devices, GAUGE)} == {
        "cus_new": turn,
        "cus_old": turn,
        "cus_part": turn + timedelta(seconds=1),
        "cus_running": midnight,
    }


# Customers that change


def three(world: World) -> None:
    for name in ("acme", "globex", "initech"):
        organisation(world, name, sensors=3, started_at=world.time.now() - DAY)


def test_whose_sensors_cannot_be_told_has_no_zero(devices: World) -> None:
    three(devices)
    devices.run()
    started_at = devices.rows("SELECT started_at FROM subscriptions LIMIT 1")[0]["started_at"]
    devices.insert(
        "subscriptions", {"organization_id": "acme", "stripe_customer_id": "cus_other", "started_at": started_at}
    )
    devices.time.advance(HOUR)
    assert "local:ambiguous_customer" in devices.run().totals.problems
    assert level(devices, "cus_acme") == 3


def test_an_organisation_that_changes_customers_leaves_a_zero_behind(devices: World) -> None:
    three(devices)
    devices.run()
    devices.insert(
        "subscriptions",
        {"organization_id": "acme", "stripe_customer_id": "cus_new", "started_at": devices.time.now() + MINUTE},
    )
    devices.stripe.create_customer("cus_new")
    devices.time.advance(HOUR)
    devices.run()
    assert (level(devices, "cus_acme"), level(devices, "cus_new")) == (0, 3)


def test_whoever_comes_back_without_sensors_has_zero_and_none_meanwhile(devices: World) -> None:
    three(devices)
    devices.run()
    switch_off(devices, "acme")
    devices.connection.execute(
        "UPDATE subscriptions SET ended_at = %s WHERE organization_id = 'acme'", [devices.time.now() + MINUTE]
    )
    devices.time.advance(20 * DAY)
    devices.run()
    assert level(devices, "cus_acme") == 3, "the last invoice is written"
    now = devices.time.now()
    devices.insert(
        "subscriptions", {"organization_id": "acme", "stripe_customer_id": "cus_acme", "current_period_start": now}
    )
    devices.time.advance(HOUR)
    assert devices.run().exit_code is ExitCode.OK
    assert level(devices, "cus_acme") == 0


def test_a_rejected_level_issued_again_does_not_replace_its_steps(devices: World) -> None:
    organisation(devices, "acme", sensors=3, stripe_customer_id="cus_gone")
    devices.run()
    devices.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_acme'")
    add_sensors(devices, "acme", 1)
    devices.run()
    source = devices.source(GAUGE)
    assert isinstance(source, PostgresGauge)
    with connect(devices.database_url) as connection:
        assert retry(connection, [1], source, GAUGE, "mended", devices.time.now()).done_ids == (1,)
    devices.run()
    assert devices.states() == ["replaced", "accepted", "superseded"]
    assert [value for _, value, _ in sent(devices, GAUGE)] == [4]


# Two at once


def test_two_runs_without_a_lock_send_each_level_once(devices: World) -> None:
    three(devices)

    def another() -> None:
        devices.run_after_claim = lambda: None
        add_sensors(devices, "acme", 1)
        devices.run(locked=False)

    devices.run_after_claim = another
    devices.run(locked=False)
    assert [(who, value) for who, value, _ in sent(devices, GAUGE)] == [
        ("cus_acme", 3),
        ("cus_globex", 3),
        ("cus_initech", 3),
    ]


# Odd configurations and odd input


@pytest.mark.parametrize("where", ["id LIKE 's%'", "'{a}' = '{a}'", "is_active -- in use", "is_active OR false"])
def test_a_condition_stands_as_the_operator_wrote_it(devices: World, where: str) -> None:
    devices.config |= {f"meters.{GAUGE}.where": where}
    organisation(devices, "acme", sensors=2)
    devices.run()
    assert level(devices, "cus_acme") == 2


@pytest.mark.parametrize("type_", ["bigint", "uuid", "text"])
def test_columns_of_any_type_in_tables_with_capitals(devices: World, type_: str) -> None:
    """Two payers ask by two columns; the first one's subscription goes before."""
    ids = {"bigint": ("1", "2"), "uuid": (f"{1:032x}", f"{2:032x}"), "text": ("ann", "org")}[type_]
    devices.connection.execute(
        f'CREATE SCHEMA "Plant"; CREATE TABLE "Plant"."Sensors" ("User" {type_}, "Org" {type_});'
        f'CREATE TABLE "Plant"."Subs" ("Who" {type_}, "Customer" text)'
    )
    lookup = {"table": "Plant.Subs", "subject": "Who", "customer": "Customer"}
    devices.config |= {f"lookups.{name}": lookup for name in ("user", "org")}
    devices.config |= {
        f"meters.{GAUGE}.table": "Plant.Sensors",
        f"meters.{GAUGE}.where": "true",
        f"meters.{GAUGE}.payers": [{"lookup": "user", "column": "User"}, {"lookup": "org", "column": "Org"}],
    }
    for who, customer in zip(ids, ("cus_ann", "cus_org"), strict=True):
        devices.connection.execute('INSERT INTO "Plant"."Subs" VALUES (%s, %s)', [who, customer])
        devices.stripe.create_customer(customer)
    for user, org in ((ids[0], ids[1]), (None, ids[1]), (None, ids[1]), (None, None)):
        devices.connection.execute('INSERT INTO "Plant"."Sensors" VALUES (%s, %s)', [user, org])
    result = devices.run()
    assert (level(devices, "cus_ann"), level(devices, "cus_org"), result.totals.skipped) == (1, 2, 1)
    devices.time.advance(HOUR)
    devices.run(level=LevelRequest(subject=ids[1], level=Decimal(9)))
    assert (level(devices, "cus_ann"), level(devices, "cus_org")) == (1, 9)


@pytest.fixture
def at_home(devices: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Two gauges, for the command itself."""
    sensors = 'source = "gauge"\ntable = "sensors"\npayers = [{ lookup = "organization", column = "organization_id" }]'
    config = tmp_path / "config.toml"
    config.write_text(f"[meters.active_sensors]\n{sensors}\n[meters.all_sensors]\n{sensors}\n", encoding="utf-8")
    for name, value in {
        "METERCTL_CONFIG": str(config),
        "DATABASE_URL": devices.database_url,
        "STRIPE_SECRET_KEY": devices.stripe.api_key,
        "METERCTL_STRIPE_API_BASE": devices.stripe.url,
    }.items():
        monkeypatch.setenv(name, value)
    return devices


@pytest.mark.parametrize("arguments", [("--subject", "acme", "--value", "5"), ("--at", "")])
def test_what_may_mean_two_things_is_refused(at_home: World, arguments: tuple[str, ...]) -> None:
    """A level is one meter's; an unset variable of a script is no instant."""
    organisation(at_home, "acme", sensors=1)
    assert main(["report-sensors", *arguments]) == ExitCode.USAGE
    assert at_home.events() == []
