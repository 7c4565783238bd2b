"""Counting: what the trigger adds to an INSERT of 1,000 readings, beside the same INSERT into a table without it.

Each INSERT is a transaction of its own on a durable PostgreSQL (fsync on); the two tables take turns.
"""

import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
from _scene import flags, print_method, print_table, print_verdict

from meterctl.postgres.counting import plan_counting
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.company import DATABASE
from meterctl.sandbox.postgres import EmbeddedPostgres
from meterctl.settings import CounterMeter, load_settings

TARGET_RATIO = 1.1

Form = Callable[[str, int, int], str]
"""Given the table, how many rows and which pair, the statement."""

TABLE = """
CREATE TABLE {name} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, organization_id text NOT NULL, sensor_id text NOT NULL,
    temperature_c numeric NOT NULL, recorded_at timestamptz NOT NULL, UNIQUE (sensor_id, recorded_at))
"""

COLUMNS = "(organization_id, sensor_id, temperature_c, recorded_at)"


def as_values(name: str, rows: int, pair: int) -> str:
    """As an application sends them: one statement with all rows in it."""
    at = datetime(2000 + pair, 1, 1, tzinfo=UTC)
    found = ", ".join(f"('org-{n % 10}', 'sensor-{n % 50}', 20.5, '{at + timedelta(seconds=n)}')" for n in range(rows))
    return f"INSERT INTO {name} {COLUMNS} VALUES {found}"  # noqa: S608 -- our own words


def as_select(name: str, rows: int, pair: int) -> str:
    """As the server makes them itself: the least that an INSERT can cost."""
    return (
        f"INSERT INTO {name} {COLUMNS} SELECT 'org-' || n % 10, 'sensor-' || n % 50, 20.5,"  # noqa: S608 -- as above
        f" timestamptz '{3000 + pair}-01-01' + n * interval '1 second' FROM generate_series(1, {rows}) AS n"
    )


def main() -> int:
    """Measure both and compare."""
    chosen = flags(__doc__ or "", readings=1_000, pairs=50).parse_args()
    with EmbeddedPostgres(durable=True) as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        url = server.conninfo(DATABASE)
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            prepare(connection, url)
            times = {form: measured(connection, form, chosen.readings, chosen.pairs) for form in (as_values, as_select)}
    print_method(
        f"INSERT of {chosen.readings} readings of 10 organisations, fsync on; {chosen.pairs} pairs in turn, after 5 to"
        " warm up. Ratio: median of the pairs'."
    )
    ratios = {form: statistics.median(c / p for p, c in found) for form, found in times.items()}
    lines = [
        [
            form.__name__.replace("as_", "INSERT … ").upper(),
            *(f"{1000 * statistics.median(one):.2f} ms" for one in zip(*found, strict=True)),
            f"{ratios[form]:.3f}",
        ]
        for form, found in times.items()
    ]
    print_table(["statement", "plain", "counted", "ratio"], lines)
    ratio = ratios[as_values]
    return print_verdict(
        f"counting costs an application's INSERT {ratio - 1:.1%} (limit 10 %)", met=ratio <= TARGET_RATIO
    )


def prepare(connection: psycopg.Connection, url: str) -> None:
    """Two equal tables, one of which is counted."""
    for name in ("plain", "counted"):
        connection.execute(TABLE.format(name=name))
    settings = load_settings(config_file=None, environ={"DATABASE_URL": url}, flags=FLAGS)
    meter = settings.meters["temperature_readings"]
    assert isinstance(meter, CounterMeter)  # noqa: S101 -- the shipped one
    for step in plan_counting(connection, settings, {"temperature_readings": meter}).steps:
        for statement in step.statements:
            connection.execute(statement)


def measured(connection: psycopg.Connection, form: Form, rows: int, pairs: int) -> list[tuple[float, float]]:
    """Return the seconds of each pair: plain, counted."""
    times = []
    for pair in range(-5, pairs):
        names = ("plain", "counted") if pair % 2 else ("counted", "plain")
        took_s = {name: inserted(connection, form(name, rows, pair)) for name in names}
        times += [(took_s["plain"], took_s["counted"])] if pair >= 0 else []
    return times


FLAGS = {"meters.temperature_readings.enabled": True, "meters.temperature_readings.table": "counted"}


def inserted(connection: psycopg.Connection, statement: str) -> float:
    """Insert once; return the seconds it took."""
    started_s = time.perf_counter()
    connection.execute(statement)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main())
