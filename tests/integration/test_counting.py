"""Usage that an application counts: `record_usage` in its own transaction, and the trigger on a table's inserts."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from meterctl.postgres.adopt import Adoption
from meterctl.postgres.adopting import carry_out
from meterctl.postgres.connect import connect
from meterctl.postgres.counting import plan_counting, uncounted
from meterctl.settings import CounterMeter, Settings, load_settings
from roles import as_role, open_roles

CONFIG = """
[lookups.organization]
table = "subscriptions"
subject = "organization_id"
customer = "stripe_customer_id"

[meters.temperature_readings]
source = "counter"
table = "readings"
payers = [{ lookup = "organization", column = "organization_id" }]
"""
KEY = "temperature_readings"


@pytest.fixture
def app(database_url: str) -> Iterator[psycopg.Connection]:
    """The application's own connection."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO organizations VALUES ('acme', 'Acme'), ('globex', 'Globex')")
        connection.execute("INSERT INTO sensors VALUES ('s1', 'acme'), ('s2', 'globex')")
        yield connection


def settings(tmp_path: Path, text: str = CONFIG) -> Settings:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(config_file=file, environ={"DATABASE_URL": "postgresql:///x"}, flags={})


def counters(found: Settings) -> dict[str, CounterMeter]:
    return {key: meter for key, meter in found.enabled_meters.items() if isinstance(meter, CounterMeter)}


def adopt(database_url: str, found: Settings) -> Adoption:
    with connect(database_url) as connection:

        def plan() -> Adoption:
            return plan_counting(connection, found, counters(found))

        shown = plan()
        carry_out(connection, database_url, shown, plan)
        assert plan().steps == ()
        assert all(uncounted(connection, key, meter) == [] for key, meter in counters(found).items())
    return shown


def recorded(app: psycopg.Connection) -> dict[str, Decimal]:
    text = "SELECT subject, sum(quantity) FROM meterctl.usage_outbox WHERE meter = %s GROUP BY 1"
    return dict(app.execute(text, [KEY]).fetchall())


def insert(app: psycopg.Connection, *sensors: str, table: str = "readings", tail: str = "") -> None:
    rows = ", ".join(
        f"('{'acme' if sensor == 's1' else 'globex'}', '{sensor}', 20, now() + interval '1 second' * {n})"
        for n, sensor in enumerate(sensors)
    )
    columns = "organization_id, sensor_id, temperature_c, recorded_at"
    app.execute(f"INSERT INTO {table} ({columns}) VALUES {rows} {tail}")  # noqa: S608 -- a test's own words


def test_rows_really_inserted_count(app: psycopg.Connection, database_url: str, tmp_path: Path) -> None:
    insert(app, "s1")
    shown = adopt(database_url, settings(tmp_path))
    assert "not counted" in shown.notes[0]
    insert(app, "s1", "s1", "s2")
    assert recorded(app) == {"acme": 2, "globex": 1}
    app.execute(
        "INSERT INTO readings (organization_id, sensor_id, temperature_c, recorded_at)"
        " SELECT organization_id, sensor_id, 1, recorded_at FROM readings ON CONFLICT DO NOTHING"
    )
    assert recorded(app) == {"acme": 2, "globex": 1}, "nothing was inserted"


def test_copy_counts_and_updates_and_rollbacks_do_not(
    app: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    adopt(database_url, settings(tmp_path))
    copy = "COPY readings (organization_id, sensor_id, temperature_c, recorded_at) FROM STDIN"
    with app.cursor().copy(copy) as rows:
        for n in range(3):
            rows.write_row(("acme", "s1", 20, f"2026-11-20 00:00:0{n}Z"))
    assert recorded(app) == {"acme": 3}
    app.execute("UPDATE readings SET temperature_c = 21")
    app.execute("DELETE FROM readings")
    with app.transaction(force_rollback=True):
        insert(app, "s1")
    insert(app, "s1")
    upsert = "ON CONFLICT (sensor_id, recorded_at) DO UPDATE SET temperature_c = 1"
    with app.transaction():
        insert(app, "s2", tail=upsert)
        insert(app, "s2", tail=upsert)
    assert recorded(app) == {"acme": 4, "globex": 1}


def test_every_partition_counts_what_is_inserted_into_it(
    app: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    app.execute("DROP TABLE readings")
    app.execute(
        "CREATE TABLE readings (organization_id text, sensor_id text, temperature_c numeric, recorded_at timestamptz)"
        " PARTITION BY LIST (organization_id);"
        "CREATE TABLE readings_acme PARTITION OF readings FOR VALUES IN ('acme');"
        "CREATE TABLE readings_rest PARTITION OF readings DEFAULT PARTITION BY LIST (sensor_id);"
        "CREATE TABLE readings_s2 PARTITION OF readings_rest FOR VALUES IN ('s2')"
    )
    found = settings(tmp_path)
    adopt(database_url, found)
    insert(app, "s1", "s2")
    insert(app, "s1", table="readings_acme")
    insert(app, "s2", table="readings_s2")
    assert recorded(app) == {"acme": 2, "globex": 2}
    app.execute("CREATE TABLE readings_new PARTITION OF readings_rest FOR VALUES IN ('s3')")
    with connect(database_url) as connection:
        (line,) = uncounted(connection, KEY, counters(found)[KEY])
    assert '"readings_new" has no trigger' in line
    assert len(adopt(database_url, found).steps) == 1


def test_the_application_needs_no_right_on_the_ledger(
    app: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    adopt(database_url, settings(tmp_path))
    with open_roles() as roles:
        role = roles.create(database_url)
        app.execute(f"GRANT INSERT ON readings TO {role}")
        with psycopg.connect(as_role(database_url, role), autocommit=True) as plain:
            insert(plain, "s1")
            with pytest.raises(pg.InsufficientPrivilege):
                plain.execute("SELECT FROM meterctl.usage_outbox")
    assert recorded(app) == {"acme": 1}


@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_a_failure_to_count_is_the_operators_to_decide(
    app: psycopg.Connection, database_url: str, tmp_path: Path, policy: str
) -> None:
    adopt(database_url, settings(tmp_path, CONFIG + f'trigger_failure = "{policy}"\n'))
    notices: list[Any] = []
    app.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    app.execute("ALTER TABLE meterctl.usage_outbox ADD CONSTRAINT broken CHECK (quantity > 1)")
    if policy == "fail":
        with pytest.raises(pg.CheckViolation):
            insert(app, "s1")
    else:
        insert(app, "s1")
        assert (
            "meterctl: rows inserted into public.readings were not counted for meter temperature_readings" in notices[0]
        )
    assert app.execute("SELECT count(*) FROM readings").fetchone() == ((0,) if policy == "fail" else (1,))
    assert recorded(app) == {}


def test_a_changed_policy_and_a_disabled_trigger_are_seen_and_mended(
    app: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    adopt(database_url, settings(tmp_path))
    changed = settings(tmp_path, CONFIG + 'trigger_failure = "warn"\n')
    with connect(database_url) as connection:
        assert "is another" in uncounted(connection, KEY, counters(changed)[KEY])[0]
    adopt(database_url, changed)
    app.execute("ALTER TABLE readings DISABLE TRIGGER meterctl_temperature_readings")
    with connect(database_url) as connection:
        assert "disabled" in uncounted(connection, KEY, counters(changed)[KEY])[0]
    app.execute("ALTER TABLE readings ENABLE TRIGGER meterctl_temperature_readings")


def test_readings_of_nobody_are_recorded_as_nobodys(app: psycopg.Connection, database_url: str, tmp_path: Path) -> None:
    app.execute("ALTER TABLE readings ALTER organization_id DROP NOT NULL")
    adopt(database_url, settings(tmp_path))
    app.execute("INSERT INTO readings (sensor_id, temperature_c, recorded_at) VALUES ('s1', 1, now())")
    assert recorded(app) == {"": 1}


def call(app: psycopg.Connection, arguments: str) -> bool:
    row = app.execute(f"SELECT meterctl.record_usage({arguments})").fetchone()
    assert row is not None
    return bool(row[0])


def test_usage_is_recorded_with_the_applications_transaction(app: psycopg.Connection) -> None:
    assert call(app, f"'{KEY}', 'acme', 5")
    with app.transaction(force_rollback=True):
        call(app, f"'{KEY}', 'acme', 7")
    assert recorded(app) == {"acme": 5}


def test_a_key_counts_once(app: psycopg.Connection) -> None:
    at = "now() - interval '1 hour'"
    assert call(app, f"'{KEY}', 'acme', 5, {at}, 'k'")
    assert not call(app, f"'{KEY}', 'acme', 5, {at}, 'k'")
    assert call(app, f"'other', 'acme', 5, {at}, 'k'"), "a key is a meter's"
    assert recorded(app) == {"acme": 5}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'m', 'acme', -1", "negative"),
        ("'m', 'acme', 'NaN'", "no number"),
        ("'m', 'acme', 'Infinity'", "no number"),
        ("'m', NULL, 1", "must be given"),
        ("'m', 'acme', 1, now() - interval '35 days 1 second'", "more than 35 days"),
        ("'m', 'acme', 1, now() + interval '6 minutes'", "ahead"),
        ("'m', 'acme', 1, dedup_key => 'k'", "an occurred_at of its own"),
        ("'m', 'acme', 1, now(), 'k'", "an occurred_at of its own"),
    ],
)
def test_what_cannot_be_billed_is_refused_at_once(app: psycopg.Connection, arguments: str, said: str) -> None:
    with pytest.raises(psycopg.DataError, match=said):
        call(app, arguments)
    assert app.execute("SELECT count(*) FROM meterctl.usage_outbox").fetchone() == (0,)


def test_calling_needs_a_grant_and_nothing_else(app: psycopg.Connection, database_url: str) -> None:
    with open_roles() as roles:
        role = roles.create(database_url)
        with psycopg.connect(as_role(database_url, role), autocommit=True) as plain:
            with pytest.raises(pg.InsufficientPrivilege):
                call(plain, f"'{KEY}', 'acme', 1")
            app.execute(f"GRANT USAGE ON SCHEMA meterctl TO {role}")
            with pytest.raises(pg.InsufficientPrivilege):
                call(plain, f"'{KEY}', 'acme', 1")
            app.execute(f"GRANT EXECUTE ON FUNCTION meterctl.record_usage TO {role}")
            assert call(plain, f"'{KEY}', 'acme', 1")
    assert recorded(app) == {"acme": 1}
