"""PostgreSQL in trouble while calls to Stripe are under way: 69, nothing lost, the next run bills what is left once.

A slow Stripe sees to it that each trouble comes in the middle of the work.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cli.conftest import Finished, Shell
from cli.waiting import until, until_sent
from meterctl.postgres.connect import LOCK_TIMEOUT
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import SHIPPED_TABLES

ROWS, CUSTOMERS, LATENCY_MS = 300, 10, 100
"""Three seconds of work: a customer's events go out one after the other."""


@contextmanager
def under_way(shell: Shell, *options: str) -> Iterator[list[Finished]]:
    """Begin the block in mid-delivery; when it has ended, wait for the run's own end and append what it left."""
    shell.usage(ROWS, customers=CUSTOMERS)
    shell.stripe.set_options(latency_ms=LATENCY_MS)
    child = shell.start("report-usage", *options)
    ended: list[Finished] = []
    try:
        until_sent(shell, 30)
        yield ended
        stdout, stderr = child.communicate(timeout=60)
        ended.append(Finished(child.returncode, stdout, stderr))
    finally:
        child.kill()
        child.communicate()


def assert_away(done: Finished, *said: str) -> None:
    """The run ended with 69, said why and what to do, and showed no traceback."""
    assert done.code == 69, done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    assert [words for words in said if words not in done.stderr] == [], done.stderr


def assert_next_run_completes(shell: Shell, *, begun: int = 30) -> None:
    """What was left is delivered: Stripe's totals are the usage, each unit once, and every row is stamped."""
    assert begun <= shell.total < ROWS, "the trouble came in the middle"
    shell.stripe.set_options(latency_ms=0)
    done = shell.run("report-usage", "--lock-timeout", "20s")
    assert done.code == 0, done.stderr
    assert_all_billed_once(shell)


def assert_all_billed_once(shell: Shell) -> None:
    assert shell.stripe.totals() == {("ai_suggestion", f"cus_{n}"): ROWS // CUSTOMERS for n in range(1, CUSTOMERS + 1)}
    shell.assert_exact()
    assert shell.sql("SELECT state, count(*) FROM meterctl.meter_events GROUP BY 1") == [("accepted", ROWS)]
    assert shell.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL") == [(0,)]


def last_exit_code(shell: Shell) -> int | None:
    code: int | None = shell.sql("SELECT exit_code FROM meterctl.runs ORDER BY id DESC LIMIT 1")[0][0]
    return code


# Its connections are ended

OF_THE_JOB = (
    "FROM pg_stat_activity AS a WHERE a.datname = current_database() AND left(a.application_name, 9) = 'meterctl '"
)
HOLDS_THE_LOCK = "EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'advisory')"


def end_connections(shell: Shell, which: str = "true") -> int:
    """End the job's connections as an administrator does; return how many there were."""
    return len(shell.sql(f"SELECT pg_terminate_backend(a.pid) {OF_THE_JOB} AND {which}"))


@pytest.mark.parametrize(("which", "count"), [("true", 2), (f"NOT {HOLDS_THE_LOCK}", 1)])
def test_connections_ended_by_an_administrator_are_69(shell: Shell, which: str, count: int) -> None:
    with under_way(shell) as ended:
        assert end_connections(shell, which) == count
    assert_away(ended[0], "run again when PostgreSQL is back")
    assert_next_run_completes(shell)


@pytest.mark.long
def test_connections_ended_before_the_first_call_are_69(shell: Shell) -> None:
    """While rows are still being collected: what was committed stays, the rest is collected again."""
    shell.usage(ROWS, customers=CUSTOMERS)
    shell.stripe.set_options(latency_ms=LATENCY_MS)
    child = shell.start("report-usage", "--batch-size", "1")
    until(lambda: shell.sql("SELECT id FROM meterctl.meter_events LIMIT 1"))
    end_connections(shell)
    stdout, stderr = child.communicate(timeout=60)
    assert_away(Finished(child.returncode, stdout, stderr))
    assert_next_run_completes(shell, begun=0)


def test_a_lock_lost_with_its_connection_lets_two_runs_bill_once(shell: Shell) -> None:
    """The lock is courtesy; safety is in the claims. The run that lost it may go on or find out, as it comes."""
    with under_way(shell) as ended:
        assert end_connections(shell, HOLDS_THE_LOCK) == 1
        second = shell.run("report-usage")
    assert {ended[0].code, second.code} <= {0, 69}, ended[0].stderr + second.stderr
    first_end, second_start = shell.sql("SELECT min(finished_at), max(started_at) FROM meterctl.runs")[0]
    assert second_start < first_end, "both were at work"
    shell.stripe.set_options(latency_ms=0)
    assert shell.run("report-usage").code == 0
    assert_all_billed_once(shell)


# The server goes


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Shell, EmbeddedPostgres]]:
    """A server that keeps what it committed as in production (fsync), and that the test may stop."""
    with EmbeddedPostgres(durable=True) as server, LocalStripe() as stripe:
        migrate(server.conninfo())
        with psycopg.connect(server.conninfo()) as connection:
            connection.execute(SHIPPED_TABLES.read_bytes())
        stripe.create_meter(event_name="ai_suggestion")
        yield Shell(database_url=server.conninfo(), stripe=stripe, home=tmp_path), server


@pytest.mark.parametrize("crash", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_server_that_is_started_again_is_69(own: tuple[Shell, EmbeddedPostgres], *, crash: bool) -> None:
    shell, server = own
    with under_way(shell) as ended:
        if crash:
            server.kill()
        server.restart()
    assert_away(ended[0], "run again when PostgreSQL is back")
    assert_next_run_completes(shell)


@pytest.mark.long
def test_a_job_with_retries_outlives_the_servers_restart(own: tuple[Shell, EmbeddedPostgres]) -> None:
    shell, server = own
    with under_way(shell, "-q", "--job-retries", "3", "--job-retry-delay", "1") as ended:
        server.restart()
    assert (ended[0].code, ended[0].stdout, ended[0].stderr) == (0, "", "")
    assert_all_billed_once(shell)


# Locks and time-outs


@pytest.mark.long
@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_ledger_locked_for_longer_than_the_lock_time_out_is_69(shell: Shell, mode: str) -> None:
    """VACUUM FULL takes the one, CREATE INDEX the other. Two seconds are waited, since answers must be written down."""
    with under_way(shell) as ended, psycopg.connect(shell.database_url) as other:
        other.execute(f"LOCK TABLE meterctl.meter_events IN {mode} MODE")
        until(lambda: not shell.sql(f"SELECT a.pid {OF_THE_JOB}"))
    assert_away(ended[0], "lock timeout")
    assert last_exit_code(shell) == 69
    assert_next_run_completes(shell)


def test_a_ledger_locked_for_a_moment_costs_nothing(shell: Shell) -> None:
    with under_way(shell) as ended, psycopg.connect(shell.database_url) as other:
        other.execute("LOCK TABLE meterctl.meter_events IN ACCESS EXCLUSIVE MODE")
        until(lambda: waits_for_a_lock(shell))
    assert ended[0].code == 0, ended[0].stderr
    assert_all_billed_once(shell)


@pytest.mark.long
def test_a_locked_usage_table_delays_stamps_and_no_unit(shell: Shell) -> None:
    """Stripe has the units and the ledger knows it: the rows are stamped by this run or by the next one."""
    with under_way(shell) as ended, psycopg.connect(shell.database_url) as other:
        other.execute("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE")
        until(lambda: waits_for_a_lock(shell))
        time.sleep(LOCK_TIMEOUT.total_seconds() + 0.5)
    assert ended[0].code == 0, ended[0].stderr
    assert "stamp_failed" in ended[0].stderr
    shell.stripe.set_options(latency_ms=0)
    assert shell.run("report-usage", "-q").code == 0
    assert_all_billed_once(shell)


def waits_for_a_lock(shell: Shell) -> bool:
    return bool(shell.sql(f"SELECT a.pid {OF_THE_JOB} AND a.wait_event_type = 'Lock'"))


def test_a_statement_cancelled_by_the_server_is_69(shell: Shell) -> None:
    """As its time-out does after ten minutes, and an administrator with pg_cancel_backend: the same SQLSTATE, 57014."""
    with under_way(shell) as ended, psycopg.connect(shell.database_url) as other:
        other.execute("LOCK TABLE meterctl.meter_events IN ACCESS EXCLUSIVE MODE")
        until(lambda: waits_for_a_lock(shell))
        shell.sql(f"SELECT pg_cancel_backend(a.pid) {OF_THE_JOB} AND a.wait_event_type = 'Lock'")
    assert_away(ended[0], "canceling statement due to user request")
    assert last_exit_code(shell) == 69
    assert_next_run_completes(shell)


# The disk is full

FULL = "could not extend file: No space left on device"


def fill_disk(shell: Shell, table: str, event: str, when: str = "true") -> None:
    """Let statements that would write such rows fail as they do on a full disk (SQLSTATE 53100, disk_full)."""
    shell.sql(
        f"CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '{FULL}'"
        " USING ERRCODE = 'disk_full'; END $$;"
        f"CREATE TRIGGER disk_full BEFORE {event} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION disk_full()"
    )


def make_room(shell: Shell) -> None:
    shell.sql("DROP FUNCTION disk_full CASCADE")


@pytest.mark.parametrize("state", ["accepted", pytest.param("sending", marks=pytest.mark.long)])
def test_a_full_disk_in_mid_run_is_69(shell: Shell, state: str) -> None:
    """Whether an answer cannot be written down or the next claim cannot: the latter is never sent."""
    with under_way(shell) as ended:
        fill_disk(shell, "meterctl.meter_events", "UPDATE", f"NEW.state = '{state}'")
    assert_away(ended[0], FULL)
    assert last_exit_code(shell) == 69
    make_room(shell)
    assert_next_run_completes(shell)


@pytest.mark.long
def test_a_disk_that_fills_up_while_rows_are_collected_is_69(shell: Shell) -> None:
    """Earlier pages are committed; nothing is sent before all is collected that can be."""
    shell.usage(ROWS, customers=CUSTOMERS)
    fill_disk(shell, "meterctl.meter_events", "INSERT", "NEW.source_row_id = '151'")
    done = shell.run("report-usage", "--batch-size", "50")
    assert_away(done, FULL)
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events") == [(150,)]
    make_room(shell)
    assert_next_run_completes(shell, begun=0)


@pytest.mark.long
def test_a_disk_too_full_for_stamps_does_not_stop_the_money(shell: Shell) -> None:
    with under_way(shell) as ended:
        fill_disk(shell, "usage_events", "UPDATE")
    assert "stamp_failed" in ended[0].stderr
    assert "Traceback" not in ended[0].stderr
    assert shell.total == ROWS
    make_room(shell)
    shell.stripe.set_options(latency_ms=0)
    assert shell.run("report-usage", "-q").code == 0
    assert_all_billed_once(shell)


@pytest.mark.long
def test_a_disk_too_full_for_the_runs_own_record_is_69(shell: Shell) -> None:
    """Everything is delivered, but the books do not say how the run ended: that is not well."""
    with under_way(shell) as ended:
        fill_disk(shell, "meterctl.runs", "UPDATE")
    assert_away(ended[0], FULL)
    assert_all_billed_once(shell)
    make_room(shell)
    assert shell.run("report-usage").code == 0
    assert_all_billed_once(shell)
