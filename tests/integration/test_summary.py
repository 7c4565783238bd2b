"""The figures of `summary` and `runs`, read from the ledger, at a cost that does not grow with its history."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from meterctl.actions.collect import row_window
from meterctl.core.model import RESEND_LIMIT
from meterctl.core.settlement import UNDECIDED_MAX
from meterctl.postgres.error_reports import SENT_AFTER, SENT_BEFORE
from meterctl.postgres.queries import query
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.summary import MeterFigures, last_good_run, latest_runs, ledger_problems, meter_figures
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import RowsMeter
from world import World

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def add(world: World, state: str, name: str, **columns: Any) -> None:
    """One event in a state of its life, with what the constraints ask of it."""
    now = world.time.now()
    of_state: dict[str, dict[str, Any]] = {
        "accepted": {"accepted_at": now, "settled_by": "answer"},
        "rejected": {"error_code": "resource_missing"},
        "in_doubt": {"doubt_since": now - HOUR, "ever_in_doubt": True},
        "sending": {"doubt_since": now, "claimed_at": now, "claimed_from": "pending", "run_id": 1, "attempt_count": 1},
    }
    common = {"meter": "ai_suggestion", "event_name": "ai_suggestion", "identifier": name, "customer": f"cus_{name}"}
    amount = {"value": 2, "quantity": 2, "occurred_at": now - HOUR, "sent_timestamp": now - HOUR, "payload": "{}"}
    rest = {"source_row_id": name, "collected_at": now, "livemode": False, "account": "acct_1", "state": state}
    world.insert("meterctl.meter_events", common | amount | rest | of_state.get(state, {}) | columns)


def figures(world: World) -> MeterFigures:
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        (found,) = meter_figures(connection, world.time.now(), {})
    return found


def problems(world: World) -> dict[str, tuple[int, list[str]]]:
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        found = ledger_problems(connection, world.time.now())
    return {one.problem.code: (one.problem.count, one.problem.sample_ids) for one in found}


def test_every_state_is_counted_where_it_belongs(world: World) -> None:
    now = world.time.now()
    add(world, "pending", "p1", occurred_at=now - 3 * DAY)
    add(world, "pending", "p2")
    add(world, "sending", "s1")
    add(world, "in_doubt", "d1")
    add(world, "in_doubt", "d2", doubt_since=now - RESEND_LIMIT)
    add(world, "in_doubt", "d3", doubt_since=now - 2 * DAY, held_reason="ambiguous")
    add(world, "rejected", "r1")
    add(world, "expired", "e1")
    add(world, "accepted", "a1")
    add(world, "accepted", "a2", late=True)
    for state in ("replaced", "waived"):
        add(world, state, state, closed_reason="noted")
    found = figures(world)
    assert (found.pending, found.sending, found.in_doubt) == (2, 1, 3)
    assert (found.held, found.held_by_age, found.rejected, found.expired) == (2, 1, 1, 1)
    assert (found.accepted, found.accepted_units, found.late, found.late_units) == (2, Decimal(4), 1, Decimal(2))
    assert found.oldest_open == now - 3 * DAY


def test_what_needs_a_person_is_named_with_samples(world: World) -> None:
    for n in range(7):
        add(world, "rejected", f"r{n}")
    add(world, "rejected", "x", error_code="local:no_customer_id")
    add(world, "expired", "old")
    add(world, "in_doubt", "d", doubt_since=world.time.now() - 3 * DAY)
    add(world, "waived", "w", closed_reason="noted")
    add(world, "pending", "p")
    assert problems(world) == {
        "resource_missing": (7, ["r0", "r1", "r2", "r3", "r4"]),
        "local:no_customer_id": (1, ["x"]),
        "expired": (1, ["old"]),
        "held": (1, ["d"]),
    }


def test_accepted_and_late_are_of_the_last_35_days(world: World) -> None:
    add(world, "accepted", "old", accepted_at=world.time.now() - 36 * DAY, late=True)
    add(world, "accepted", "new", accepted_at=world.time.now() - 34 * DAY)
    assert (figures(world).accepted, figures(world).late) == (1, 0)


def test_unreported_rows_are_those_without_an_event_free_users_among_them(world: World) -> None:
    world.customer("ada")
    world.usage("ada")
    world.run()
    oldest = world.time.now() - 3 * DAY
    world.usage("free", created_at=oldest)
    world.usage("ada")
    world.usage("ada", ago=80 * DAY)
    settings = world.settings()
    meter = settings.meters["ai_suggestion"]
    assert isinstance(meter, RowsMeter)
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        nobody = LedgerOwner(account="", livemode=False)
        source = PostgresRows(connection, "ai_suggestion", meter, settings.lookups, nobody)
        backlog = source.backlog(row_window(world.time.now(), recent=None))
    assert (backlog.row_count, backlog.oldest) == (2, oldest)


def run(world: World, *, pid: int, exit_code: int | None, started_at: datetime, host: str = "h") -> None:
    ended = {"exit_code": exit_code, "finished_at": started_at + HOUR} if exit_code is not None else {}
    columns = {"command": "report", "mode": "test", "account": "a", "host": host, "pid": pid, "version": "0"}
    world.insert("meterctl.runs", columns | {"started_at": started_at} | ended)


def test_a_run_is_alive_while_its_connection_is(world: World) -> None:
    now = world.time.now()
    run(world, pid=7, exit_code=None, started_at=now - DAY)
    run(world, pid=8, exit_code=None, started_at=now)
    run(world, pid=9, exit_code=0, started_at=now)
    with psycopg.connect(world.database_url, autocommit=True, application_name="meterctl 8@h") as connection:
        assert [found.outcome for found in latest_runs(connection, 20)] == ["0", "running", "died"]


def test_a_dead_run_does_not_live_on_in_a_later_one_of_the_same_process_number(world: World) -> None:
    """In a container every run has the same one."""
    now = world.time.now()
    run(world, pid=1, exit_code=None, started_at=now - DAY)
    run(world, pid=1, exit_code=None, started_at=now)
    with psycopg.connect(world.database_url, autocommit=True, application_name="meterctl 1@h") as connection:
        assert [found.outcome for found in latest_runs(connection, 20)] == ["running", "died"]
        assert [found.outcome for found in latest_runs(connection, 1)] == ["running"]


def test_the_last_good_run_is_the_newest_that_did_its_work(world: World) -> None:
    now = world.time.now()
    for hours, code in ((5, 0), (4, 10), (3, 69), (2, None)):
        run(world, pid=hours, exit_code=code, started_at=now - hours * HOUR)
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        assert last_good_run(connection) == now - 3 * HOUR, "an hour after the start of the one that ended with 10"
        connection.execute("DELETE FROM meterctl.runs WHERE exit_code IN (0, 10)")
        assert last_good_run(connection) is None


HISTORY = """
INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,
    sent_timestamp, payload, source_row_id, state, accepted_at, settled_by, collected_at, livemode, account)
SELECT 'm', 'm', n::text, 'cus_' || n %% 100, 1, 1, at, at, '{}', n::text, 'accepted', at, 'answer', at, false, 'a'
FROM (SELECT n, %(now)s - interval '2 years' * (1 - n / 200000.0) AS at FROM generate_series(1, 200000) AS n) AS past
"""

REPORT = """
WITH owner AS (INSERT INTO meterctl.identity (account, livemode, since) VALUES ('a', false, %(at)s))
INSERT INTO meterctl.error_reports (event_id, event_name, error_count, sample_count, validation_start, validation_end,
    created, noted_at)
VALUES ('evt_1', 'm', 5, 0, %(at)s, %(at)s, %(at)s, %(at)s)
"""


@pytest.mark.slow
def test_the_summary_does_not_read_the_history(world: World) -> None:
    """200,000 accepted events of two years: of those, only the blocks of the last 35 days are looked at."""
    now = world.time.now()
    world.connection.execute(HISTORY, {"now": now})
    world.connection.execute(REPORT, {"at": now - 2 * DAY})
    world.connection.execute("VACUUM ANALYZE meterctl.meter_events")
    horizons = {"doubt_horizon": now - RESEND_LIMIT, "undecided_before": now - UNDECIDED_MAX}
    parameters = {"since": now - 35 * DAY} | horizons
    reported_lately = query("error_reports", "reported_lately")
    texts = {name: query("summary", name) for name in ("open", "accepted", "late", "problems")}
    read = {
        name: _blocks_read(world, text.replace("{reported_lately}", reported_lately), parameters)
        for name, text in texts.items()
    }
    reports = {"before": SENT_BEFORE, "after": SENT_AFTER, "shown_since": now - 35 * DAY, "levels": []}
    read["reports"] = _blocks_read(world, query("error_reports", "open"), reports)
    assert all("meter_events" not in scanned for _, scanned in read.values()), read
    total = world.rows("SELECT relpages FROM pg_class WHERE oid = 'meterctl.meter_events'::regclass")[0]["relpages"]
    assert all(blocks < total / 8 for blocks, _ in read.values()), (total, read)


def _blocks_read(world: World, text: str, parameters: dict[str, Any]) -> tuple[int, list[str]]:
    """Return how many blocks a statement reads, and the tables that it reads from their beginning to their end."""
    row = world.connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + text, parameters).fetchone()
    assert row is not None
    plan = row["QUERY PLAN"][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], list(_scanned(plan))


def _scanned(plan: dict[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from _scanned(part)
