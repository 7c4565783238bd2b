"""Applications whose tables look like nobody else's: each bills a whole night, and totals and stamps are compared.

A night is what an operator does: `db adopt`, the check that every report begins with, the report, and once more.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meterctl.actions.collect import row_window
from meterctl.actions.report import ReportResult
from meterctl.core.diagnosis import Status
from meterctl.errors import ConfigurationError, ExitCode
from meterctl.postgres.adopt import plan_adoption
from meterctl.postgres.adopting import carry_out
from meterctl.postgres.check import require_fit
from meterctl.postgres.connect import connect
from meterctl.postgres.forget import find_forgettable
from meterctl.postgres.inspection import inspect_database
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.postgres.wanted import rows_meters
from meterctl.settings import RowsMeter, Settings, load_settings
from several_meters import run
from world import World

DAY = timedelta(days=1)


def settings_of(world: World, tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    environ = {
        "DATABASE_URL": world.database_url,
        "STRIPE_SECRET_KEY": world.stripe.api_key,
        "METERCTL_STRIPE_API_BASE": world.stripe.url,
    }
    return load_settings(config_file=path, environ=environ, flags={})


def adopt(world: World, settings: Settings, cut_over: datetime | None = None) -> None:
    with connect(world.database_url) as connection:

        def plan() -> Any:
            return plan_adoption(connection, settings, rows_meters(settings), cut_over=cut_over)

        carry_out(connection, world.database_url, plan(), plan)


def night(world: World, settings: Settings, **options: Any) -> ReportResult:
    adopt(world, settings)
    with connect(world.database_url) as connection:
        require_fit(connection, settings)
    result = run(world, settings, **options)
    total = world.stripe_total()
    assert run(world, settings).totals.reported == 0
    assert world.stripe_total() == total
    return result


def source(settings: Settings, key: str, connection: psycopg.Connection) -> PostgresRows:
    meter = settings.meters[key]
    assert isinstance(meter, RowsMeter)
    return PostgresRows(connection, key, meter, settings.lookups, LedgerOwner(account="", livemode=False))


def stamped(world: World, table: str, id_: str, reported_at: str) -> set[str]:
    rows = world.rows(f"SELECT {id_}::text AS id FROM {table} WHERE {reported_at} IS NOT NULL")  # noqa: S608 -- a test's own words
    return {row["id"] for row in rows}


# An object mapper's tables: a schema of their own, names in mixed case, uuid keys, UTC in timestamp(3)

MAPPED = """
CREATE SCHEMA "Shop";
CREATE TABLE "Shop"."ApiCall" (
    "callId" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "orgId" uuid NOT NULL, "tokensUsed" numeric(20, 6),
    "createdAt" timestamp(3) NOT NULL, "reportedAt" timestamp(3), "Region Code" text, "Kind" text NOT NULL
);
CREATE TABLE "Shop"."Plan" (
    "planId" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "orgId" uuid, "stripeId" text,
    "startedAt" timestamp(3), "endedAt" timestamp(3), "periodEnd" timestamp(3)
);
"""
MAPPED_CONFIG = """
[lookups.plan]
table = "Shop.Plan"
id = "planId"
subject = "orgId"
customer = "stripeId"
started_at = "startedAt"
ended_at = "endedAt"
period_end = "periodEnd"
time_zone = "UTC"

[meters.tokens]
source = "rows"
formula = "sum"
table = "Shop.ApiCall"
id = "callId"
value = "tokensUsed"
values = "decimal"
occurred_at = "createdAt"
reported_at = "reportedAt"
time_zone = "UTC"
where = '"Kind" <> $$internal$$'
identifier = "call-{callId}"
customer_payload_key = "customer"
value_payload_key = "tokens"
payload = { region = "Region Code", kind = "Kind" }
payers = [{ lookup = "plan", column = "orgId" }]
"""
ORG = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.fixture
def mapped(world: World) -> World:
    """An organisation whose customer changed five days ago."""
    world.connection.execute(MAPPED)
    world.stripe.create_meter(event_name="tokens", customer_key="customer", value_key="tokens")
    changed = utc(world.time.now() - 5 * DAY)
    for customer, span in (("cus_old", {"endedAt": changed}), ("cus_new", {"startedAt": changed})):
        world.stripe.create_customer(customer)
        world.insert('"Shop"."Plan"', {'"orgId"': ORG, '"stripeId"': customer} | quoted(span))
    return world


def utc(instant: datetime) -> datetime:
    """As such a column holds it."""
    return instant.astimezone(UTC).replace(tzinfo=None)


def quoted(columns: dict[str, Any]) -> dict[str, Any]:
    return {f'"{name}"': value for name, value in columns.items()}


def call(world: World, tokens: str, *, ago: timedelta = DAY, kind: str = "chat", region: str | None = None) -> str:
    values = {
        "orgId": ORG,
        "tokensUsed": tokens,
        "createdAt": utc(world.time.now() - ago),
        "Kind": kind,
        "Region Code": region,
    }
    return str(world.insert('"Shop"."ApiCall"', quoted(values))["callId"])


def test_uuid_keys_mixed_case_and_utc_without_zone(mapped: World, tmp_path: Path) -> None:
    settings = settings_of(mapped, tmp_path, MAPPED_CONFIG)
    billed = {call(mapped, "1.25"), call(mapped, "2.000001"), call(mapped, "4", ago=5 * DAY), call(mapped, "-0.5")}
    billed.add(call(mapped, "8", ago=5 * DAY + timedelta(milliseconds=1)))
    call(mapped, "16", kind="internal")
    result = night(mapped, settings)
    assert (result.exit_code, result.totals.reported) == (ExitCode.OK, 5)
    assert mapped.stripe.totals() == {("tokens", "cus_new"): Decimal("6.750001"), ("tokens", "cus_old"): 8}
    assert stamped(mapped, '"Shop"."ApiCall"', '"callId"', '"reportedAt"') == billed
    at = mapped.rows('SELECT DISTINCT "reportedAt" AS at FROM "Shop"."ApiCall" WHERE "reportedAt" IS NOT NULL')
    assert at == [{"at": utc(mapped.time.now())}], "the stamp is kept in the column's zone, too"


def test_extra_payload_keys_are_frozen_and_left_out_where_there_is_nothing(mapped: World, tmp_path: Path) -> None:
    settings = settings_of(mapped, tmp_path, MAPPED_CONFIG)
    regions = {call(mapped, "1", region=region): region for region in ("eu-west-1", 'a"b\\%s', "", None)}
    too_long = call(mapped, "1", region="x" * 101)
    exactly = call(mapped, "1", region="ü" * 100)
    mapped.stripe.stop_listening()
    run(mapped, settings)
    mapped.connection.execute('UPDATE "Shop"."ApiCall" SET "Region Code" = $$elsewhere$$')
    mapped.stripe.start_listening()
    result = run(mapped, settings)
    sent = {event.identifier.removeprefix("call-"): dict(event.payload) for event in mapped.stripe.events()}
    common = {"customer": "cus_new", "tokens": "1", "kind": "chat"}
    expected = {row: common | ({"region": region} if region else {}) for row, region in regions.items()}
    expected[exactly] = common | {"region": "ü" * 100}
    assert sent == expected
    kept = {event["source_row_id"]: event["payload"] for event in mapped.events() if event["state"] == "accepted"}
    assert kept == expected, "what is kept is what was sent: no key without a text"
    assert mapped.rows(
        "SELECT source_row_id AS id, error_code AS code FROM meterctl.meter_events WHERE payload IS NULL"
    ) == [{"id": too_long, "code": "local:payload_too_long"}]
    assert result.totals.reported == 5


# Partitions, text ids, two meters on one table

PARTITIONED = """
CREATE TABLE calls (
    call text NOT NULL, account text NOT NULL, seconds int, at timestamptz NOT NULL, PRIMARY KEY (call, at)
) PARTITION BY RANGE (at);
CREATE TABLE calls_old PARTITION OF calls FOR VALUES FROM (MINVALUE) TO ('2026-11-01');
CREATE TABLE calls_new PARTITION OF calls FOR VALUES FROM ('2026-11-01') TO (MAXVALUE);
CREATE TABLE accounts (name text PRIMARY KEY, customer text NOT NULL);
"""
PARTITIONED_CONFIG = """
[lookups.account]
table = "accounts"
subject = "name"
customer = "customer"

[meters.call_seconds]
source = "rows"
formula = "sum"
table = "calls"
id = "call"
value = "seconds"
occurred_at = "at"
reported_at = "seconds_reported_at"
payers = [{ lookup = "account", column = "account" }]

[meters.long_calls]
source = "rows"
formula = "count"
table = "calls"
id = "call"
occurred_at = "at"
reported_at = "count_reported_at"
where = "seconds > 60"
payers = [{ lookup = "account", column = "account" }]
"""


def test_partitions_text_ids_and_two_meters_on_one_table(world: World, tmp_path: Path) -> None:
    world.connection.execute(PARTITIONED)
    world.stripe.create_meter(event_name="call_seconds")
    world.stripe.create_meter(event_name="long_calls", formula="count")
    world.stripe.create_customer("cus_a")
    world.insert("accounts", {"name": "a", "customer": "cus_a"})
    now = world.time.now()
    for call_id, seconds, ago in (("a/1 ü", 30, 30), ("'); --", 61, 22), ("%s", 100, 1), ("{x}", 60, 1)):
        world.insert("calls", {"call": call_id, "account": "a", "seconds": seconds, "at": now - ago * DAY})
    settings = settings_of(world, tmp_path, PARTITIONED_CONFIG)
    result = night(world, settings, batch_size=2)
    assert (result.exit_code, result.totals.reported) == (ExitCode.OK, 6)
    assert world.stripe.totals() == {("call_seconds", "cus_a"): 251, ("long_calls", "cus_a"): 2}
    assert stamped(world, "calls", "call", "seconds_reported_at") == {"a/1 ü", "'); --", "%s", "{x}"}
    assert stamped(world, "calls", "call", "count_reported_at") == {"'); --", "%s"}
    with connect(world.database_url) as connection:
        found = inspect_database(connection, settings)
    assert [finding.message for finding in found if finding.status is not Status.OK] == []


# A view where the table was, and views as lookups

VIEWED = """
CREATE SCHEMA app;
ALTER TABLE usage_events SET SCHEMA app;
ALTER TABLE app.usage_events RENAME TO raw_usage;
CREATE VIEW usage_events AS
    SELECT id AS n, user_id, quantity / 1000 AS thousands, created_at AS at, stripe_reported_at AS done
    FROM app.raw_usage WHERE event_type = 'tokens';
CREATE TABLE app.members (user_id text, company int);
CREATE TABLE app.companies (id int PRIMARY KEY, customer text);
CREATE VIEW who_pays AS
    SELECT members.user_id, companies.customer, 'active' AS status, timestamp '2026-11-11 00:00' AS since
    FROM app.members JOIN app.companies ON companies.id = members.company;
"""
VIEWED_CONFIG = """
[lookups.company]
table = "who_pays"
subject = "user_id"
customer = "customer"
status = "status"
started_at = "since"
time_zone = "America/New_York"

[meters.thousands_of_tokens]
source = "rows"
formula = "sum"
table = "public.usage_events"
id = "n"
value = "thousands"
values = "decimal"
occurred_at = "at"
reported_at = "done"
payers = [{ lookup = "company", column = "user_id" }]
"""


def test_a_view_of_usage_and_a_view_of_payers(world: World, tmp_path: Path) -> None:
    world.connection.execute(VIEWED)
    world.stripe.create_meter(event_name="thousands_of_tokens")
    world.stripe.create_customer("cus_1")
    world.insert("app.companies", {"id": 1, "customer": "cus_1"})
    world.insert("app.members", {"user_id": "ada", "company": 1})
    start = datetime(2026, 11, 11, 5, tzinfo=UTC)  # midnight in New York
    usage = {"workspace_id": "w", "user_id": "ada", "quantity": 1500, "created_at": start, "event_type": "tokens"}
    billed = {str(world.insert("app.raw_usage", usage)["id"]) for _ in range(3)}
    world.insert("app.raw_usage", usage | {"event_type": "other"})
    world.insert("app.raw_usage", usage | {"user_id": "free"})
    world.insert("app.raw_usage", usage | {"created_at": start - timedelta(seconds=1)})
    result = night(world, settings_of(world, tmp_path, VIEWED_CONFIG))
    assert (result.exit_code, result.totals.reported, result.totals.skipped) == (ExitCode.OK, 3, 2)
    assert world.stripe.totals() == {("thousands_of_tokens", "cus_1"): Decimal("4.5")}
    assert stamped(world, "app.raw_usage", "id", "stripe_reported_at") == billed


GAUGED_CONFIG = (
    VIEWED_CONFIG.partition("[meters")[0]
    + """
[meters.seats]
source = "gauge"
table = "seats"
payers = [{ lookup = "company", column = "user_id" }]
"""
)


def test_local_times_of_a_lookup_count_for_levels_too(world: World, tmp_path: Path) -> None:
    """A subscription that begins at ten in the evening in New York, which is three in the morning here."""
    world.connection.execute(
        "CREATE TABLE seats (user_id text);"
        "CREATE VIEW who_pays AS SELECT 'ada' AS user_id, 'cus_1' AS customer, 'active' AS status,"
        " timestamp '2026-11-20 22:00' AS since"
    )
    world.stripe.create_meter(event_name="seats", formula="last")
    world.stripe.create_customer("cus_1")
    world.insert("seats", {"user_id": "ada"})
    settings = settings_of(world, tmp_path, GAUGED_CONFIG)
    assert run(world, settings).totals.reported == 0
    world.time.advance(timedelta(hours=1))
    assert run(world, settings).totals.reported == 1


# Local times, and the nights when clocks are changed

LOCAL_CONFIG = """
[lookups.individual]
table = "subscriptions"
subject = "user_id"
customer = "stripe_customer_id"

[meters.ai_suggestion]
source = "rows"
formula = "sum"
table = "usage_events"
value = "quantity"
occurred_at = "created_at"
time_zone = "Europe/Berlin"
payers = [{ lookup = "individual", column = "user_id" }]
"""


@pytest.fixture
def berlin(world: World) -> World:
    """Usage recorded by the clock on the wall; the stamp is of meterctl's own kind."""
    world.connection.execute("ALTER TABLE usage_events ALTER created_at TYPE timestamp")
    world.customer("ada")
    return world


def record(world: World, quantity: int, local: str) -> str:
    return str(world.usage("ada", quantity, created_at=datetime.fromisoformat(local)))


def sent_at(world: World) -> dict[int, datetime]:
    return {int(event.quantity): event.timestamp for event in world.stripe.events()}


def test_clocks_set_back_make_an_hour_that_is_read_as_its_second_pass(berlin: World, tmp_path: Path) -> None:
    """Half past two happens twice; usage recorded then is never sent as of the future, but waits for the second."""
    settings = settings_of(berlin, tmp_path, LOCAL_CONFIG)
    berlin.time.instant = datetime(2026, 10, 25, 0, 45, tzinfo=UTC)  # 02:45 by the wall, for the first time
    record(berlin, 1, "2026-10-25 01:59:59")
    record(berlin, 2, "2026-10-25 02:30:00")
    night(berlin, settings)
    assert sent_at(berlin) == {1: datetime(2026, 10, 24, 23, 59, 59, tzinfo=UTC)}
    berlin.time.advance(timedelta(hours=1))
    record(berlin, 4, "2026-10-25 02:40:00")
    assert night(berlin, settings).exit_code is ExitCode.OK
    assert sent_at(berlin) == {
        1: datetime(2026, 10, 24, 23, 59, 59, tzinfo=UTC),
        2: datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
        4: datetime(2026, 10, 25, 1, 40, tzinfo=UTC),
    }
    assert len(stamped(berlin, "usage_events", "id", "stripe_reported_at")) == 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_clocks_set_forward_leave_no_page_out(berlin: World, tmp_path: Path, batch_size: int) -> None:
    """An hour that never was is read as the next one, so that later local times come before earlier ones."""
    settings = settings_of(berlin, tmp_path, LOCAL_CONFIG)
    berlin.time.instant = datetime(2027, 3, 28, 12, tzinfo=UTC)
    times = ("01:30", "02:15", "02:30", "02:45", "03:00", "03:10", "03:20", "03:40")
    for n, time in enumerate(times):
        record(berlin, 2**n, f"2027-03-28 {time}")
    result = night(berlin, settings, batch_size=batch_size)
    assert (result.totals.reported, berlin.stripe_total()) == (len(times), 2 ** len(times) - 1)
    assert sent_at(berlin)[2] == sent_at(berlin)[16] + timedelta(minutes=15)


def test_stamps_in_local_time_are_ours_to_take_off(berlin: World, tmp_path: Path) -> None:
    """`db forget-test` tells its own stamps by instants; one set a while after the acceptance by its row's, too."""
    berlin.connection.execute("ALTER TABLE usage_events ALTER stripe_reported_at TYPE timestamp")
    settings = settings_of(berlin, tmp_path, LOCAL_CONFIG)
    record(berlin, 1, "2026-11-20 12:00")
    record(berlin, 1, "2026-11-20 13:00")
    night(berlin, settings)
    (stamp,) = berlin.rows("SELECT DISTINCT stripe_reported_at::text AS at FROM usage_events")
    assert stamp["at"] == "2026-11-21 03:00:00"
    berlin.connection.execute("UPDATE usage_events SET stripe_reported_at = timestamp '2026-11-21 04:00' WHERE id = 1")
    berlin.connection.execute("UPDATE usage_events SET stripe_reported_at = timestamp '2026-11-21 02:30' WHERE id = 2")
    with connect(berlin.database_url) as connection:
        (part,) = find_forgettable(connection, settings).parts
    assert {verdict: rows.sample_ids for verdict, rows in part.rows.items()} == {"stamped": ("1",), "foreign": ("2",)}


def test_a_cut_over_and_since_are_instants_whatever_the_column_holds(berlin: World, tmp_path: Path) -> None:
    settings = settings_of(berlin, tmp_path, LOCAL_CONFIG)
    berlin.connection.execute("ALTER TABLE usage_events DROP COLUMN stripe_reported_at")
    for n, local in enumerate(("2026-11-09 23:59", "2026-11-10 00:00", "2026-11-11 23:59", "2026-11-12 00:00")):
        record(berlin, 10**n, local)
    adopt(berlin, settings, cut_over=datetime(2026, 11, 9, 23, tzinfo=UTC))
    assert len(stamped(berlin, "usage_events", "id", "stripe_reported_at")) == 1
    since = settings_of(berlin, tmp_path, LOCAL_CONFIG + "since = 2026-11-12T00:00:00+01:00\n")
    night(berlin, since)
    assert berlin.stripe_total() == 1000
    night(berlin, settings)
    assert berlin.stripe_total() == 1110


def test_a_zone_that_postgresql_does_not_know_is_named(berlin: World, tmp_path: Path) -> None:
    settings = settings_of(berlin, tmp_path, LOCAL_CONFIG.replace("Europe/Berlin", "Europe/Berln"))
    with connect(berlin.database_url) as connection, pytest.raises(ConfigurationError) as caught:
        require_fit(connection, settings)
    assert caught.value.problems == (
        (
            f"{tmp_path / 'config.toml'}: meters.ai_suggestion.time_zone: PostgreSQL refuses it: "
            'time zone "Europe/Berln" not recognized; did you mean "Europe/Berlin"?'
        ),
    )
    with pytest.raises(ConfigurationError) as refused:
        adopt(berlin, settings)
    assert refused.value.problems == caught.value.problems


# What is not this meter's


def test_usage_before_since_is_counted_and_never_collected(world: World, tmp_path: Path) -> None:
    world.customer("ada")
    theirs, ours = world.usage("ada", 1, ago=3 * DAY), world.usage("ada", 10, ago=2 * DAY)
    world.usage("ada", 100, ago=80 * DAY)
    text = LOCAL_CONFIG.replace('time_zone = "Europe/Berlin"', f"since = {(world.time.now() - 2 * DAY).isoformat()}")
    settings = settings_of(world, tmp_path, text)
    with connect(world.database_url) as connection:
        rows = source(settings, "ai_suggestion", connection)
        window = row_window(world.time.now(), recent=None)
        counts = {kind.outcome: kind.event_count for kind in rows.preview(window, doubt_horizon=world.time.now())}
        assert counts == {"pending": 1, "before_since": 1}
        assert rows.backlog(window).row_count == 1
    night(world, settings)
    assert stamped(world, "usage_events", "id", "stripe_reported_at") == {str(ours)}
    asked = run(world, settings, row_ids=(str(theirs),))
    assert asked.exit_code is ExitCode.BAD_INPUT
    assert "`since`" in asked.notes[0]


def test_a_wrong_condition_is_told_before_anything_is_adopted(world: World, tmp_path: Path) -> None:
    settings = settings_of(world, tmp_path, LOCAL_CONFIG.replace("time_zone", "where = 'evnt_type = 1'\ntime_zone"))
    with pytest.raises(ConfigurationError) as caught:
        adopt(world, settings)
    assert caught.value.problems == (
        (
            f"{tmp_path / 'config.toml'}: meters.ai_suggestion.where: PostgreSQL refuses it: "
            'column "evnt_type" does not exist (Perhaps you meant to reference the column "u.event_type")'
        ),
    )


def test_a_condition_on_the_column_that_is_yet_to_come_is_no_obstacle(world: World, tmp_path: Path) -> None:
    world.connection.execute("ALTER TABLE usage_events DROP COLUMN stripe_reported_at")
    where = "where = 'stripe_reported_at IS NULL'\ntime_zone"
    adopt(world, settings_of(world, tmp_path, LOCAL_CONFIG.replace("time_zone", where)))
    assert stamped(world, "usage_events", "id", "stripe_reported_at") == set()
