"""History: what reported rows cost a run, five million of them in the usage table and in the ledger against none.

Both databases have the indexes that `db migrate` and `db adopt` make. Runs alternate between them.
"""

import statistics
import sys
import time
from typing import LiteralString

from _scene import Scene, flags, new_database, open_scene, print_method, print_table, print_verdict

TARGET_RATIO = 1.3
CHUNK_ROWS = 250_000

REPORTED: LiteralString = """
    WITH usage AS (
        INSERT INTO usage_events (workspace_id, user_id, quantity, created_at, stripe_reported_at)
        SELECT 'ws', 'user-' || (1 + n %% %(customers)s), 1 + n %% 5, at, at + interval '1 day'
        FROM (
            SELECT n, now() - interval '400 days' + n * (interval '399 days' / %(rows)s) AS at
            FROM generate_series(%(first)s::bigint, %(last)s) AS n
        ) AS reported
        RETURNING *
    )
    INSERT INTO meterctl.meter_events (
        meter, event_name, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject,
        source_row_id, state, attempt_count, answers_heard, last_attempt_at, accepted_at, settled_by, run_id,
        request_id, collected_at, livemode, account)
    SELECT 'ai_suggestion', 'ai_suggestion', 'ws-' || user_id || '-' || id, 'cus_' || substr(user_id, 6), quantity,
           quantity, created_at, date_trunc('second', created_at),
           jsonb_build_object('stripe_customer_id', 'cus_' || substr(user_id, 6), 'value', quantity::text), user_id,
           id, 'accepted', 1, 1, stripe_reported_at, stripe_reported_at, 'answer', 1, 'req_' || id,
           stripe_reported_at, false, 'acct_sandboxexample'
    FROM usage
"""

OTHERS: LiteralString = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def main() -> int:
    """Measure both and compare."""
    chosen = flags(__doc__ or "", history=5_000_000, unreported=100, customers=2000, repeats=7).parse_args()
    with open_scene(customers=chosen.customers) as empty:
        full = new_database(empty.server, empty.stripe, "history", chosen.customers)
        started_s = time.monotonic()
        reported(full, chosen.history)
        print_method(
            f"report-usage from start to exit with {chosen.unreported} unreported rows, no latency;"
            f" median of {chosen.repeats}, after one to warm up.\n"
            f"History: {chosen.history:,} reported rows with their accepted events, over 400 days, made in"
            f" {time.monotonic() - started_s:.0f} s.\nPostgreSQL's time: active_time of pg_stat_database."
        )
        times: dict[str, list[tuple[float, float]]] = {"no history": [], f"{chosen.history:,} rows": []}
        for _ in range(chosen.repeats + 1):
            for name, scene in zip(times, (empty, full), strict=True):
                times[name].append(one_run(scene, chosen.unreported))
    medians = [[statistics.median(figures[1:]) for figures in zip(*runs, strict=True)] for runs in times.values()]
    rows = [(name, f"{wall:.0f}", f"{active:.1f}") for name, (wall, active) in zip(times, medians, strict=True)]
    print_table(("usage table and ledger", "run ms", "PostgreSQL ms"), rows)
    wall_ratio, active_ratio = (full_ms / empty_ms for empty_ms, full_ms in zip(*medians, strict=True))
    return print_verdict(
        f"with history a run takes {wall_ratio:.2f} times as long (PostgreSQL alone {active_ratio:.2f}),"
        f" at most {TARGET_RATIO}",
        met=wall_ratio <= TARGET_RATIO,
    )


def reported(scene: Scene, rows: int) -> None:
    """Add rows as an earlier year's runs leave them."""
    with scene.connect() as connection:
        for first in range(1, rows + 1, CHUNK_ROWS):
            last = min(rows, first + CHUNK_ROWS - 1)
            parameters = {"rows": rows, "first": first, "last": last, "customers": scene.customer_count}
            connection.execute(REPORTED, parameters)
        connection.execute("VACUUM ANALYZE")


def one_run(scene: Scene, unreported: int) -> tuple[float, float]:
    """Report new rows; return milliseconds of the run and of PostgreSQL within it."""
    scene.usage(unreported)
    before_ms = active_ms(scene)
    finished = scene.report()
    if finished.totals["reported"] != unreported:
        raise SystemExit(f"not everything was reported: {finished.totals}")
    return finished.wall_s * 1000, active_ms(scene) - before_ms


def active_ms(scene: Scene) -> float:
    """Return how long sessions of the database have worked so far, when all have ended: that is when they tell."""
    with scene.connect() as connection:
        while connection.execute(OTHERS).fetchone() != (0,):
            time.sleep(0.01)
        row = connection.execute(
            "SELECT active_time FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return float(row[0]) if row else 0.0


if __name__ == "__main__":
    sys.exit(main())
