"""Counting: what the trigger adds to an INSERT of 1,000 readings, beside the same INSERT into a table without it.

Each INSERT is a transaction of its own on a durable PostgreSQL (fsync on); the two tables take turns.
"""

import statistics
import sys
import time

import psycopg
from _scene import flags, print_method, print_table, print_verdict

from meterctl.postgres.counting import plan_counting
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.company import DATABASE
from meterctl.sandbox.postgres import EmbeddedPostgres
from meterctl.settings import CounterMeter, load_settings

TARGET_RATIO = 1.1

TABLE = """
CREATE TABLE {name} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, organization_id text NOT NULL, sensor_id text NOT NULL,
    temperature_c numeric NOT NULL, recorded_at timestamptz NOT NULL, UNIQUE (sensor_id, recorded_at))
"""

INSERT = """
INSERT INTO {name} (organization_id, sensor_id, temperature_c, recorded_at)
SELECT 'org-' || n %% 10, 'sensor-' || n %% 50, 20.5, %(at)s::timestamptz + n * interval '1 second'
FROM generate_series(1, %(rows)s) AS n
"""


def main() -> int:
    """Measure both and compare."""
    chosen = flags(__doc__ or "", readings=1_000, pairs=50).parse_args()
    with EmbeddedPostgres(durable=True) as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        url = server.conninfo(DATABASE)
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            times = measured(connection, url, chosen.readings, chosen.pairs)
    print_method(
        f"INSERT of {chosen.readings} readings of 10 organisations, fsync on; {chosen.pairs} pairs in turn, after 5 to"
        " warm up."
    )
    medians = {name: statistics.median(found) * 1000 for name, found in times.items()}
    print_table(["table", "median"], [[name, f"{ms:.2f} ms"] for name, ms in medians.items()])
    ratio = statistics.median(c / p for c, p in zip(times["counted"], times["plain"], strict=True))
    return print_verdict(
        f"counted is {ratio:.3f} times plain, median of the pairs (limit 1.10)", met=ratio <= TARGET_RATIO
    )


def measured(connection: psycopg.Connection, url: str, rows: int, pairs: int) -> dict[str, list[float]]:
    """Return the seconds of each INSERT by table."""
    for name in ("plain", "counted"):
        connection.execute(TABLE.format(name=name))
    settings = load_settings(config_file=None, environ={"DATABASE_URL": url}, flags=FLAGS)
    meter = settings.meters["temperature_readings"]
    assert isinstance(meter, CounterMeter)  # noqa: S101 -- the shipped one
    for step in plan_counting(connection, settings, {"temperature_readings": meter}).steps:
        for statement in step.statements:
            connection.execute(statement)
    times: dict[str, list[float]] = {"plain": [], "counted": []}
    for pair in range(-5, pairs):
        for name in ("plain", "counted") if pair % 2 else ("counted", "plain"):
            took_s = inserted(connection, name, rows, pair)
            times[name] += [took_s] if pair >= 0 else []
    return times


FLAGS = {"meters.temperature_readings.enabled": True, "meters.temperature_readings.table": "counted"}


def inserted(connection: psycopg.Connection, name: str, rows: int, pair: int) -> float:
    """Insert once; return the seconds it took."""
    started_s = time.perf_counter()
    connection.execute(INSERT.format(name=name), {"rows": rows, "at": f"{2000 + pair}-01-01"})
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main())
