"""The whole job behind PgBouncer in transaction mode: every transaction may meet another connection of the server.

So nothing may be left in a session, nothing may be prepared there, and the lock must hold all the same. PgBouncer's
manual, "SQL feature map for pooling modes", lists what transaction mode takes away.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pytest

from cli.conftest import Shell
from cli.waiting import until, until_sent
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres
from pooler import PGBOUNCER, SERVER_CONNECTIONS, pool

if TYPE_CHECKING:
    from subprocess import Popen

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (Debian: the package pgbouncer)")


@contextmanager
def behind_a_pool(
    server: EmbeddedPostgres,
    database_url: str,
    directory: Path,
    *,
    pool_size: int = SERVER_CONNECTIONS,
    pool_mode: str = "transaction",
) -> Iterator[Shell]:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with pool(server, directory, pool_size=pool_size, pool_mode=pool_mode) as port, LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        url = f"postgresql://postgres@127.0.0.1:{port}/{quote(str(name))}"
        yield Shell(database_url=url, stripe=stripe, home=directory)


@pytest.fixture
def pooled(pg_server: EmbeddedPostgres, database_url: str, short_tmp: Path) -> Iterator[Shell]:
    with behind_a_pool(pg_server, database_url, short_tmp) as shell:
        yield shell


def test_a_whole_night_works_through_the_pool(pooled: Shell) -> None:
    pooled.usage(400, customers=40, quantity=2)
    pooled.stripe.set_options(latency_ms=5)
    done = pooled.run("report-usage", "--json")
    assert (done.code, done.document["totals"]["units"]) == (0, "800"), done.stderr
    assert pooled.total == 800
    pooled.assert_exact()
    assert pooled.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL") == [(0,)]
    assert pooled.run("report-usage", "-q").code == 0
    assert pooled.total == 800


def test_events_are_pulled_through_the_pool(pooled: Shell) -> None:
    pooled.usage(1)
    pooled.stripe.reject_later(customer="cus_1")
    pooled.run("report-usage", "-q")
    pooled.stripe.complete_checkout(pooled.stripe.create_subscription("cus_ada"), client_reference_id="ada")
    pooled.stripe.clock.advance(timedelta(seconds=30))
    done = pooled.run("webhooks", "pull")
    assert (done.code, done.stdout.splitlines()[-1]) == (0, "3 new events (0 known); 3 processed")
    assert pooled.sql("SELECT state FROM meterctl.meter_events") == [("in_doubt",)]
    assert pooled.sql("SELECT status FROM subscriptions WHERE user_id = 'ada'") == [("active",)]


def test_the_pool_is_in_transaction_mode(pooled: Shell) -> None:
    """Else all of this would show nothing: two transactions of one client can meet two servers."""
    with psycopg.connect(pooled.database_url, autocommit=True) as one, psycopg.connect(pooled.database_url) as other:
        before = one.execute("SELECT pg_backend_pid()").fetchone()
        assert other.execute("SELECT pg_backend_pid()").fetchone() == before, "the same, now free, serves the other"
        assert one.execute("SELECT pg_backend_pid()").fetchone() != before


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("db", "migrate"), 0),
        (("db", "check"), 0),
        (("report-usage", "--dry-run"), 0),
        (("summary",), 10),
        (("runs",), 0),
        (("ledger", "list"), 0),
        (("ledger", "show", "1"), 0),
        (("ledger", "retry", "--code", "resource_missing", "--reason", "known now", "--yes"), 0),
        (("ledger", "waive", "--code", "resource_missing", "--reason", "a test", "--yes"), 0),
        (("settle",), 0),
        (("db", "forget-test", "--yes"), 0),
    ],
)
def test_every_command_works_through_the_pool(pooled: Shell, arguments: tuple[str, ...], code: int) -> None:
    pooled.usage(3, known=False)
    assert pooled.run("report-usage").code == 10
    done = pooled.run(*arguments)
    assert done.code == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_table_is_adopted_through_the_pool(pooled: Shell) -> None:
    pooled.sql("ALTER TABLE usage_events DROP COLUMN stripe_reported_at")  # and the index with it
    done = pooled.run("db", "adopt", "--yes")
    assert done.code == 0, done.stderr
    assert pooled.run("db", "check").code == 0
    pooled.usage(3)
    assert pooled.run("report-usage", "-q").code == 0
    assert pooled.total == 3


@pytest.mark.long
def test_no_setting_of_ours_stays_in_the_pools_sessions(pooled: Shell) -> None:
    """What a session of the pool keeps would reach the application's own queries."""
    pooled.usage(50, customers=5)
    for arguments in (("db", "check"), ("report-usage",), ("summary",)):
        assert pooled.run(*arguments).code == 0
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
    left = [setting_of_every_session(pooled, name) for name in names]
    assert left == [{"0"}, {"0"}, {"0"}, {"on"}]


def setting_of_every_session(shell: Shell, name: str) -> set[str]:
    """Return the values of a setting in the pool's sessions: as many as there are, asked at the same time."""
    clients = [psycopg.connect(shell.database_url) for _ in range(SERVER_CONNECTIONS)]
    try:
        rows = [client.execute(f"SHOW {name}").fetchone() for client in clients]  # each keeps its transaction open
    finally:
        for client in clients:
            client.close()
    return {row[0] for row in rows if row}


# The lock


def test_a_second_run_is_locked_out_while_the_first_lives(pooled: Shell) -> None:
    pooled.usage(100, customers=1)
    pooled.stripe.set_options(latency_ms=80)
    first = pooled.start("report-usage")
    until_sent(pooled)
    second = pooled.run("report-usage")
    assert second.code == 75
    assert f"locked by meterctl {first.pid}@" in second.stderr
    assert first.poll() is None, "the first still works, so it was not luck"
    first.communicate(timeout=60)
    assert (first.returncode, pooled.total) == (0, 100)
    pooled.assert_exact()


def test_the_lock_of_a_killed_run_frees_itself(pooled: Shell) -> None:
    """PgBouncer ends the server's connection when a client leaves in the midst of a transaction: as good as its own."""
    with killed_in_mid_run(pooled):
        assert pooled.run("report-usage").code == 75
    pooled.stripe.set_options(latency_ms=0)
    done = pooled.run("report-usage", "--lock-timeout", "10s")
    assert done.code == 0, done.stderr
    assert pooled.total == 400
    pooled.assert_exact()


@contextmanager
def killed_in_mid_run(shell: Shell) -> Iterator[None]:
    """While the block runs a report is under way, for at least five seconds; then it is killed."""
    shell.usage(400, customers=4)
    shell.stripe.set_options(latency_ms=50)
    child = shell.start("report-usage")
    try:
        until_sent(shell, 20)
        yield
        assert child.poll() is None, "it died in the middle of the work"
    finally:
        child.kill()
        child.communicate()


@pytest.fixture
def remembered(pooled: Shell) -> Shell:
    """The pool behind a killed report, with the connection it worked on still under the name that it gave it.

    The report dies between two transactions: PgBouncer closes connections that lose their client in the midst of one.
    And the pool hands out first what was freed last, which is not that connection, so nobody renames it.
    """
    pooled.usage(400, customers=4)
    pooled.stripe.set_options(latency_ms=300)
    with psycopg.connect(pooled.database_url) as other:
        other.execute("SELECT 1")
        child = pooled.start("report-usage")
        until_sent(pooled, 8)
        until(lambda: stands_between_transactions(child, other))
        child.kill()
        child.communicate()
    return pooled


def stands_between_transactions(child: "Popen[str]", client: psycopg.Connection) -> bool:
    """Stop the report; let it go on if it was at work in the database."""
    child.send_signal(signal.SIGSTOP)
    time.sleep(0.05)  # what it sent has been carried out by then
    idle = "SELECT FROM pg_stat_activity WHERE application_name LIKE %s AND state = 'idle'"
    found = client.execute(idle, [f"meterctl {child.pid}@%"]).rowcount == 1
    if not found:
        child.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    return found


def test_a_killed_run_is_not_shown_as_running(remembered: Shell) -> None:
    assert [run["outcome"] for run in remembered.run("runs", "--json").document["runs"]] == ["died"]


def test_a_killed_run_does_not_keep_us_in_test_mode(remembered: Shell) -> None:
    done = remembered.run("db", "forget-test", "--yes")
    assert done.code == 0, done.stderr


# When the pool does not serve us


@pytest.mark.long
def test_a_pool_too_small_for_the_lock_is_69_and_says_what_it_waited_for(
    pg_server: EmbeddedPostgres, database_url: str, short_tmp: Path
) -> None:
    with behind_a_pool(pg_server, database_url, short_tmp, pool_size=1) as shell:
        shell.usage(3)
        done = shell.run("report-usage")
        assert done.code == 69, done.stderr
        assert "query_wait_timeout" in done.stderr
        assert shell.total == 0


# The doctor


def lock_of(shell: Shell) -> tuple[int, list[tuple[str, str]]]:
    done = shell.run("doctor", "--offline", "--json")
    found = [(one["status"], one["message"]) for one in done.document["checks"] if one["check"] == "lock"]
    return done.code, found


def test_the_doctor_finds_that_the_lock_holds_in_the_pool(pooled: Shell) -> None:
    assert lock_of(pooled)[1] == [("ok", "the lock of one connection keeps another one out, and frees itself")]


@pytest.mark.parametrize("setting", [{"pool_size": 1}, {"pool_mode": "statement"}])
def test_the_doctor_names_a_pool_that_cannot_keep_the_lock(
    pg_server: EmbeddedPostgres, database_url: str, short_tmp: Path, setting: Any
) -> None:
    """A pool of one connection, and one in statement mode, which knows no transactions."""
    with behind_a_pool(pg_server, database_url, short_tmp, **setting) as shell:
        code, ((status, message),) = lock_of(shell)
        assert (code, status) == (69, "fail")
        assert message.startswith("the lock cannot be tried: ")
