"""Real deaths: `kill -9` of the command at instants of chance and at each of its steps, and of a durable PostgreSQL.

After each, the next run is exact: what Stripe has is what the ledger calls accepted is what the rows say.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cli.conftest import Shell
from cli.held_up import killed_as_it_writes
from cli.waiting import until_sent
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import SHIPPED_TABLES

ROWS = 120

CHANCE = random.Random(9)  # noqa: S311 -- repeatable, nothing secret
INSTANTS_S = [round(CHANCE.uniform(0.05, 1.5), 3) for _ in range(100)]
"""Within the life of the command, start and end included, whose delivery takes about half of it."""


def exact_afterwards(shell: Shell, total: int) -> None:
    """The next run makes up for what the dead one left."""
    shell.stripe.set_options(latency_ms=0)
    done = shell.run("report-usage", "--lock-timeout", "20s")
    assert done.code == 0, done.stderr
    assert shell.total == total
    shell.assert_exact()
    assert shell.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL") == [(0,)]


def use(shell: Shell) -> None:
    """Another night's usage by the same customers."""
    shell.sql(
        "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)"
        " SELECT 'ws', 'u' || 1 + n %% 12, 1, now() - interval '1 hour' FROM generate_series(1, %s) AS n",
        ROWS,
    )


def killed_after(shell: Shell, instant_s: float) -> None:
    use(shell)
    shell.stripe.set_options(latency_ms=50)
    child = shell.start("report-usage", "--lock-timeout", "20s")
    time.sleep(instant_s)
    child.kill()
    child.communicate()


@pytest.mark.parametrize("first", [0, pytest.param(5, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_killed_at_any_instant(shell: Shell, first: int) -> None:
    """Five instants in the ordinary suite, the rest of the hundred in the long one."""
    shell.usage(0, customers=12)
    for nth, instant_s in enumerate(INSTANTS_S[first:] if first else INSTANTS_S[:5], start=1):
        killed_after(shell, instant_s)
        exact_afterwards(shell, nth * ROWS)


STEPS = {
    "begins": ("meterctl.runs", "INSERT", "true"),
    "collects": ("meterctl.meter_events", "INSERT", "NEW.state = 'pending'"),
    "claims": ("meterctl.meter_events", "UPDATE", "NEW.state = 'sending'"),
    "records": ("meterctl.meter_events", "UPDATE", "NEW.state = 'accepted'"),
    "stamps": ("usage_events", "UPDATE", "true"),
    "ends": ("meterctl.runs", "UPDATE", "true"),
}
"""Step → the write that it is, which a trigger holds up until the command is dead."""


@pytest.mark.parametrize("step", STEPS)
def test_killed_as_it(shell: Shell, step: str) -> None:
    """The write under way is lost with the command, as it would be with its host."""
    shell.usage(20, customers=5)
    killed_as_it_writes(shell, STEPS[step], "report-usage")
    exact_afterwards(shell, 20)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[tuple[Shell, EmbeddedPostgres]]:
    """A server that flushes what it commits, as one in service does."""
    with EmbeddedPostgres(durable=True) as server, LocalStripe() as stripe:
        migrate(server.conninfo())
        with psycopg.connect(server.conninfo()) as connection:
            connection.execute(SHIPPED_TABLES.read_bytes())
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        stripe.create_meter(event_name="ai_suggestion")
        yield Shell(database_url=server.conninfo(), stripe=stripe, home=tmp_path), server


def test_a_durable_postgresql_killed_again_and_again(durable: tuple[Shell, EmbeddedPostgres]) -> None:
    shell, server = durable
    shell.usage(0, customers=12)
    for nth, sent in enumerate((1, 40, 100), start=1):
        already = (nth - 1) * ROWS
        use(shell)
        shell.stripe.set_options(latency_ms=50)
        child = shell.start("report-usage")
        until_sent(shell, already + sent)
        server.kill()
        stdout, stderr = child.communicate(timeout=60)
        assert child.returncode == 69, stdout + stderr
        server.restart()
        exact_afterwards(shell, nth * ROWS)
