"""Recorded volumes: one event for each subject and closed hour, cut where a billing period ends."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from meterctl.actions.collect import row_window
from meterctl.actions.first_night import waiting_window
from meterctl.actions.preview import preview
from meterctl.errors import ExitCode
from meterctl.postgres.connect import connect
from meterctl.postgres.counter import PostgresCounter
from meterctl.postgres.ledger_admin import retry
from metered_devices import COUNTER, GAUGE, open_devices, organisation, record, sent
from world import World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def devices(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as world:
        world.config |= {f"meters.{GAUGE}.enabled": False}
        yield world


def counted(world: World) -> list[tuple[str, int, datetime]]:
    return [(who, int(value), at) for who, value, at in sent(world, COUNTER)]


def outbox(world: World) -> int:
    return int(world.rows("SELECT count(*) AS n FROM meterctl.usage_outbox")[0]["n"])


def test_a_subjects_hour_is_one_event_at_its_last_second(devices: World) -> None:
    now = devices.time.now()
    for name in ("acme", "globex"):
        organisation(devices, name)
        for minute in (0, 10, 59):
            record(devices, name, 5, at=now - 2 * HOUR + timedelta(minutes=minute))
    record(devices, "acme", 1, at=now - HOUR)
    devices.time.advance(timedelta(minutes=5))
    result = devices.run()
    assert (result.exit_code, result.totals.reported, result.totals.units) == (ExitCode.OK, 3, 31)
    assert counted(devices) == [
        ("cus_acme", 1, now - SECOND),
        ("cus_acme", 15, now - HOUR - SECOND),
        ("cus_globex", 15, now - HOUR - SECOND),
    ]


def test_an_hour_is_closed_five_minutes_after_its_end(devices: World) -> None:
    organisation(devices, "acme")
    record(devices, "acme", at=devices.time.now() - timedelta(minutes=1))
    devices.time.advance(timedelta(minutes=4, seconds=59))
    assert devices.run().totals.total == 0
    devices.time.advance(SECOND)
    assert devices.run().totals.reported == 1


def test_the_open_window_is_reported_on_demand_and_its_rest_later(devices: World) -> None:
    organisation(devices, "acme")
    start = devices.time.now()
    devices.time.advance(timedelta(minutes=20))
    record(devices, "acme", 2)
    devices.run(open_too=True)
    record(devices, "acme", 3, at=start + timedelta(minutes=40))
    devices.time.advance(2 * HOUR)
    devices.run()
    assert counted(devices) == [
        ("cus_acme", 2, start + timedelta(minutes=20)),
        ("cus_acme", 3, start + HOUR - SECOND),
    ]


def test_late_usage_of_a_sent_window_is_a_further_event(devices: World) -> None:
    organisation(devices, "acme")
    hour = devices.time.now() - 2 * HOUR
    record(devices, "acme", 5, at=hour)
    devices.run()
    record(devices, "acme", 7, at=hour)
    devices.run()
    assert counted(devices) == [("cus_acme", 5, hour + HOUR - SECOND), ("cus_acme", 7, hour + HOUR - SECOND)]


def test_an_hour_is_cut_where_a_period_ends(devices: World) -> None:
    now = devices.time.now()
    turn = now - 2 * HOUR + timedelta(minutes=20)
    organisation(devices, "acme", current_period_start=turn, current_period_end=turn + 30 * DAY)
    organisation(devices, "globex", current_period_start=turn - 30 * DAY, current_period_end=turn)
    for name in ("acme", "globex"):
        record(devices, name, 1, at=turn - SECOND)
        record(devices, name, 2, at=turn)
    devices.run()
    assert counted(devices) == [
        (f"cus_{name}", units, at)
        for name in ("acme", "globex")
        for units, at in ((1, turn - SECOND), (2, now - HOUR - SECOND))
    ]
    assert {row["period_end"] for row in devices.events() if row["quantity"] == 1} == {turn}


def test_a_subscription_that_changes_within_the_hour_gets_its_part(devices: World) -> None:
    hour = devices.time.now() - 2 * HOUR
    change = hour + timedelta(minutes=30)
    organisation(devices, "acme", ended_at=change)
    devices.insert("subscriptions", {"organization_id": "acme", "stripe_customer_id": "cus_new", "started_at": change})
    devices.stripe.create_customer("cus_new")
    record(devices, "acme", 1, at=hour)
    record(devices, "acme", 2, at=change)
    devices.run()
    assert [(who, units) for who, units, _ in counted(devices)] == [("cus_acme", 1), ("cus_new", 2)]


def test_free_usage_waits_and_usage_without_a_customer_id_is_named_every_time(devices: World) -> None:
    organisation(devices, "free", pays=False)
    organisation(devices, "acme", stripe_customer_id=None)
    for name in ("free", "acme"):
        record(devices, name, at=devices.time.now() - 2 * HOUR)
    for _ in range(2):
        result = devices.run()
        assert (result.exit_code, result.totals.skipped, result.totals.rejected) == (ExitCode.PROBLEMS, 1, 1)
    devices.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_acme'")
    assert devices.run().totals.reported == 1
    assert outbox(devices) == 2


def test_a_fraction_waits_until_the_meter_takes_decimals(devices: World) -> None:
    organisation(devices, "acme")
    record(devices, "acme", Decimal("0.5"), at=devices.time.now() - 2 * HOUR)
    assert "local:value_fractional" in devices.run().totals.problems
    devices.config |= {f"meters.{COUNTER}.values": "decimal"}
    assert devices.run().totals.units == Decimal("0.5")


def test_usage_of_a_meter_that_nobody_configured_is_named(devices: World) -> None:
    devices.insert(
        "meterctl.usage_outbox", {"meter": "bytes", "subject": "acme", "quantity": 1, "occurred_at": "2026-11-20"}
    )
    result = devices.run()
    assert (result.exit_code, result.totals.problems["unknown_meter"].sample_ids) == (ExitCode.PROBLEMS, ["acme"])


def test_usage_older_than_35_days_expires_once(devices: World) -> None:
    organisation(devices, "acme")
    record(devices, "acme", 5, at=devices.time.now() - 36 * DAY)
    first, second = devices.run(), devices.run()
    assert (first.totals.expired, second.totals.expired) == (1, 0)
    assert [event["state"] for event in devices.events()] == ["expired"]


def test_done_usage_leaves_after_its_time_and_unbillable_usage_when_no_run_looks_at_it(devices: World) -> None:
    organisation(devices, "acme")
    organisation(devices, "free", pays=False)
    for name in ("acme", "free"):
        record(devices, name, at=devices.time.now() - 2 * HOUR)
    devices.run()
    devices.time.advance(34 * DAY)
    devices.run()
    assert outbox(devices) == 2
    devices.time.advance(DAY + HOUR)
    devices.run()
    assert outbox(devices) == 1
    devices.time.advance(35 * DAY)
    devices.run()
    assert outbox(devices) == 0
    devices.assert_accepted_is_billed()


def test_a_limit_leaves_whole_windows_for_later(devices: World) -> None:
    for name in ("a", "b", "c"):
        organisation(devices, name)
        for hours in (2, 3):
            record(devices, name, 1, at=devices.time.now() - hours * HOUR)
    result = devices.run(limit=4)
    assert (result.exit_code, result.totals.reported, result.totals.remaining) == (ExitCode.OK, 4, 2)
    assert devices.run(limit=4).totals.reported == 2
    assert len(counted(devices)) == 6


def test_the_dry_run_says_what_a_run_sends(devices: World) -> None:
    organisation(devices, "acme")
    for hours in (1, 2, 3):
        record(devices, "acme", 2, at=devices.time.now() - hours * HOUR)
    plan = preview(COUNTER, devices.source(COUNTER), devices.time.now(), recent=None)
    assert (plan.events, plan.units, plan.customers) == (2, 4, 1)
    assert devices.run().totals.units == 4


@pytest.mark.parametrize("type_", ["bigint", "uuid", "text"])
def test_a_lookups_subject_may_be_of_any_type(devices: World, type_: str) -> None:
    subject = {"bigint": "42", "uuid": "0b0e3d9e-1f7f-4a0e-9c5e-0d5a2f3c1a10", "text": "acme"}[type_]
    devices.connection.execute(f"ALTER TABLE subscriptions ALTER organization_id TYPE {type_} USING NULL")
    devices.insert("subscriptions", {"organization_id": subject, "stripe_customer_id": "cus_x"})
    devices.stripe.create_customer("cus_x")
    record(devices, subject, 1, at=devices.time.now() - 2 * HOUR)
    record(devices, "no such subject", 1, at=devices.time.now() - 2 * HOUR)
    result = devices.run()
    assert (result.totals.reported, result.totals.skipped) == (1, 1)


def test_two_runs_at_once_collect_each_row_once(devices: World) -> None:
    """The second one skips what the first has locked, and takes what is left when it looks again."""
    organisation(devices, "acme")
    record(devices, "acme", 5, at=devices.time.now() - 2 * HOUR)
    source = devices.source(COUNTER)
    assert isinstance(source, PostgresCounter)
    with devices.connection.transaction():
        devices.connection.execute("SELECT FROM meterctl.usage_outbox FOR UPDATE")
        assert devices.run().totals.total == 0
    assert devices.run().totals.units == 5


TURNS = [
    datetime(2026, 10, 25, 0, 0, tzinfo=UTC),  # clocks in Europe fall back an hour later
    datetime(2026, 11, 1, 6, 30, tzinfo=UTC),  # and in America here
    datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2026, 11, 1, 0, 0, tzinfo=UTC),
    datetime(2026, 11, 15, 10, 20, 30, 500_000, tzinfo=UTC),
]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/St_Johns"])
def test_windows_part_at_hours_and_period_ends_and_hold_their_own_timestamp(
    devices: World, turn: datetime, zone: str
) -> None:
    """For usage around each bound: an event's units are those of its part, its timestamp lies inside it."""
    name = devices.connection.info.dbname
    devices.connection.execute(f"ALTER DATABASE {name} SET TimeZone = '{zone}'")
    organisation(devices, "acme", current_period_start=turn, current_period_end=turn + 30 * DAY)
    offsets = [
        timedelta(microseconds=us) for us in (-3_600_000_000, -1, 0, 0, 1, 1_000_000, 3_599_999_999, 3_600_000_000)
    ]
    for offset in offsets:
        record(devices, "acme", 1, at=turn + offset)
    devices.run()
    expected: dict[tuple[datetime, bool], int] = {}
    for offset in offsets:
        at = turn + offset
        part = (at.replace(minute=0, second=0, microsecond=0), at >= turn)
        expected[part] = expected.get(part, 0) + 1
    events = devices.events()
    assert sorted(int(event["quantity"]) for event in events) == sorted(expected.values())
    for event in events:
        hour = event["occurred_at"].replace(minute=0, second=0, microsecond=0)
        new = event["occurred_at"] >= turn
        begin, end = (max(hour, turn), hour + HOUR) if new else (hour, min(hour + HOUR, turn))
        assert begin <= event["sent_timestamp"] < end
        assert event["quantity"] == expected[hour, new]


def test_a_rejected_window_is_issued_again_for_whoever_pays_now(devices: World) -> None:
    organisation(devices, "acme", stripe_customer_id="cus_gone")
    record(devices, "acme", 5, at=devices.time.now() - 2 * HOUR)
    assert devices.run().totals.rejected == 1
    devices.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_acme'")
    source = devices.source(COUNTER)
    assert isinstance(source, PostgresCounter)
    with connect(devices.database_url) as connection:
        (rejected,) = devices.events()
        assert retry(connection, [rejected["id"]], source, COUNTER, "mended", devices.time.now()).refused == {}
    assert devices.run().totals.units == 5
    first, second = devices.events()
    assert (first["state"], second["state"]) == ("replaced", "accepted")
    assert second["identifier"] == first["identifier"] + "~2"
    assert counted(devices) == [("cus_acme", 5, first["sent_timestamp"])]
    devices.time.advance(36 * DAY)
    devices.run()
    assert outbox(devices) == 0


def test_usage_that_waits_too_long_is_told_as_one(devices: World) -> None:
    """What the doctor asks; a free subject's is not among it."""
    organisation(devices, "acme")
    organisation(devices, "free", pays=False)
    for days in (31, 32, 33, 36, 80):
        for name in ("acme", "free"):
            record(devices, name, 2, at=devices.time.now() - days * DAY)
    source = devices.source(COUNTER)
    assert isinstance(source, PostgresCounter)
    found = source.uncollected(waiting_window(row_window(devices.time.now(), recent=None)))
    assert [(kind.outcome, kind.event_count, kind.units) for kind in found] == [("expired", 2, 4), ("pending", 3, 6)]
