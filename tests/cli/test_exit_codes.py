"""Exit codes that only a real server in trouble, a real role or another version's schema can bring about."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cli.conftest import Finished, Shell
from cli.waiting import until_sent
from meterctl.postgres.migrate import migrate, migrations
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import SHIPPED_TABLES
from roles import as_role, open_roles

KNOWN = migrations()[-1].version


@contextmanager
def own_server(*, tcp: bool = False) -> Iterator[EmbeddedPostgres]:
    """A server that the test may stop, with schema and tables in its database `postgres`."""
    with EmbeddedPostgres(tcp=tcp) as server:
        migrate(server.conninfo())
        with psycopg.connect(server.conninfo()) as connection:
            connection.execute(SHIPPED_TABLES.read_bytes())
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Shell, EmbeddedPostgres]]:
    with own_server(tcp=True) as server, LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        yield Shell(database_url=server.conninfo(), stripe=stripe, home=tmp_path), server


def refused(done: Finished, code: int, *said: str) -> None:
    """The command ended with this code, told why and what to do, and showed no traceback."""
    assert done.code == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    assert [words for words in said if words not in done.stderr] == [], done.stderr


# PostgreSQL


@pytest.mark.parametrize("end", ["kill", pytest.param("restart", marks=pytest.mark.long)])
def test_postgresql_lost_in_mid_run_is_69_and_costs_no_unit(own: tuple[Shell, EmbeddedPostgres], end: str) -> None:
    """It crashes, or its administrator restarts it: calls under way are answered, and nobody can write that down."""
    shell, server = own
    shell.usage(300, customers=30)
    shell.stripe.set_options(latency_ms=50)
    child = shell.start("report-usage")
    until_sent(shell, 30)
    getattr(server, end)()
    stdout, stderr = child.communicate(timeout=30)
    refused(Finished(child.returncode, stdout, stderr), 69, "run again when PostgreSQL is back")
    server.restart()
    assert shell.run("report-usage").code == 0
    assert shell.total == 300
    shell.assert_exact()


def test_a_stopped_postgresql_is_69_for_every_command(own: tuple[Shell, EmbeddedPostgres]) -> None:
    shell, server = own
    server.kill()
    for arguments in (("report-usage", "--dry-run"), ("summary",), ("runs",), ("ledger", "list")):
        refused(shell.run(*arguments), 69, "run again when PostgreSQL is back")


def test_a_wrong_password_is_77_and_is_not_shown(own: tuple[Shell, EmbeddedPostgres]) -> None:
    shell, server = own
    right = server.tcp_conninfo()
    shell.extra = {"DATABASE_URL": right}
    assert shell.run("report-usage").code == 0
    shell.extra = {"DATABASE_URL": right.replace("postgres:", "postgres:not-", 1)}
    done = shell.run("report-usage")
    refused(done, 77, "check user and password in DATABASE_URL")
    assert "not-" not in done.stderr
    password = right.partition("postgres:")[2].partition("@")[0]
    shell.extra = {"DATABASE_URL": right.replace(f":{password}@", "@", 1)}
    refused(shell.run("report-usage"), 77, "check user and password in DATABASE_URL")


@contextmanager
def standby(server: EmbeddedPostgres) -> Iterator[None]:
    """Run the server's data as a hot standby, which is what a replica is, until the block ends.

    A `standby.signal` file makes a server recover for ever (PostgreSQL's manual, "Standby Server Operation").
    """
    server.kill()
    data = server.directory / "data"
    (data / "standby.signal").touch()
    program = next(server.directory.glob("programs/**/bin/postgres"), server.bin_directory / "postgres")
    owner = data.stat()
    settings = {"listen_addresses": "", "port": "5432", "unix_socket_directories": f'"{server.directory}"'}
    with (server.directory / "standby.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-D", data, *(f"--{name}={value}" for name, value in settings.items())],
            user=owner.st_uid if os.geteuid() == 0 else None,
            group=owner.st_gid if os.geteuid() == 0 else None,
            env={"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until_open(server)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait(timeout=30)


def until_open(server: EmbeddedPostgres) -> None:
    for _ in range(300):
        try:
            psycopg.connect(server.conninfo()).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail((server.directory / "standby.log").read_text())


@pytest.mark.parametrize("arguments", [("report-usage",), pytest.param(("db", "migrate"), marks=pytest.mark.long)])
def test_a_read_replica_is_78_and_points_to_the_primary(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with own_server() as server, LocalStripe() as stripe:
        shell = Shell(database_url=server.conninfo(), stripe=stripe, home=tmp_path)
        stripe.create_meter(event_name="ai_suggestion")
        shell.usage(1)
        with standby(server):
            refused(shell.run(*arguments), 78, "use the primary")
            assert "WARN  this server is a standby" in shell.run("db", "check").stdout
            doctor = shell.run("doctor", "--offline")
            assert doctor.code == 78
            assert "FAIL  replica: this server is a standby" in doctor.stdout
            assert "OK    lock: " in doctor.stdout
        assert shell.total == 0


def test_a_default_of_read_only_transactions_does_not_concern_us(shell: Shell) -> None:
    """It is a default, for people at a prompt: each of our transactions says itself whether it writes."""
    shell.usage(1)
    name = shell.sql("SELECT current_database()")[0][0]
    shell.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert shell.run("report-usage").code == 0
    assert shell.total == 1


# Rights


def test_a_role_without_rights_is_77_and_the_grants_it_is_told_suffice(shell: Shell) -> None:
    shell.usage(1)
    with open_roles() as roles:
        shell.extra = {"DATABASE_URL": as_role(shell.database_url, roles.create(shell.database_url))}
        told: list[str] = []
        while (done := shell.run("report-usage")).code == 77:
            grants = [line[line.index("GRANT") :] for line in done.stderr.splitlines() if "GRANT" in line]
            assert grants, done.stderr
            assert not set(grants) & set(told), "what was told before did not help"
            for grant in grants:
                shell.sql(grant)
            told += grants
        assert told
        assert done.code == 0, done.stderr
    assert shell.total == 1


@pytest.mark.parametrize("whose", ["ROLE", "DATABASE"])
def test_no_connection_left_is_69(shell: Shell, whose: str) -> None:
    """A limit is reached: that passes, so cron may try again."""
    with open_roles() as roles:
        role = roles.create(shell.database_url)
        name = role if whose == "ROLE" else shell.sql("SELECT current_database()")[0][0]
        shell.sql(f"ALTER {whose} {name} CONNECTION LIMIT 0")
        shell.extra = {"DATABASE_URL": as_role(shell.database_url, role)}
        refused(shell.run("report-usage"), 69, "too many connections")


def test_a_database_that_the_role_may_not_enter_is_77(shell: Shell) -> None:
    name = shell.sql("SELECT current_database()")[0][0]
    shell.sql(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    with open_roles() as roles:
        shell.extra = {"DATABASE_URL": as_role(shell.database_url, roles.create(shell.database_url))}
        refused(shell.run("report-usage"), 77, "permission denied for database")


# Schema and account


@pytest.mark.parametrize(
    ("version", "code", "said"), [(KNOWN + 1, 0, ""), (KNOWN + 2, 78, "upgrade meterctl"), (None, 78, "db migrate")]
)
def test_the_schema_may_be_one_version_ahead_and_never_behind(
    shell: Shell, version: int | None, code: int, said: str
) -> None:
    """So a migration can go out first, and an old host does not work on what it does not know."""
    shell.usage(1)
    if version is None:
        shell.sql("DELETE FROM meterctl.schema_migrations")
    else:
        shell.sql("INSERT INTO meterctl.schema_migrations (version, name) VALUES (%s, 'later')", version)
    done = shell.run("report-usage")
    assert done.code == code
    assert said in done.stderr
    assert (shell.total == 1) is (code == 0)


def test_a_live_ledger_is_78_for_a_test_key(shell: Shell) -> None:
    shell.usage(1)
    shell.sql(
        "INSERT INTO meterctl.identity (account, livemode, since) VALUES (%s, true, now())", shell.stripe.account_id
    )
    refused(shell.run("report-usage"), 78, "live mode", "another database")
    assert shell.total == 0


def test_a_key_of_another_account_than_configured_is_78(shell: Shell, tmp_path: Path) -> None:
    config = tmp_path / "meterctl.toml"
    config.write_text('[stripe]\naccount = "acct_other"\n')
    refused(shell.run("-c", str(config), "report-usage"), 78, "acct_other", shell.stripe.account_id)


# Several at once


def test_a_locked_meter_is_75_though_the_other_was_reported(shell: Shell, tmp_path: Path) -> None:
    """Worst wins: 75 over the 10 of the other meter, whose work is done all the same."""
    shell.usage(1)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'u1', 'NaN')")
    body = (
        'source = "rows"\nformula = "sum"\ntable = "usage_events"\nvalue = "quantity"\noccurred_at = "created_at"\n'
        'reported_at = "stripe_reported_at"\npayers = [{ lookup = "individual", column = "user_id" }]\n'
    )
    config = tmp_path / "meterctl.toml"
    config.write_text(f'[meters.ai_suggestion]\n{body}where = "true"\n[meters.other]\n{body}where = "false"\n')
    with psycopg.connect(shell.database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:other', 0))")
        done = shell.run("-c", str(config), "report-usage")
    assert done.code == 75, done.stderr
    assert "other: locked by" in done.stderr
    assert "1 local:value_not_a_number" in done.stderr
    assert shell.total == 1
