"""`db recover` and `db adopt-copy` as commands: what they ask, refuse and say; what a copy is kept from."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from cli.conftest import Shell
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import clone
from roles import as_role, open_roles

AGO = ("--since", "2026-01-01")


@pytest.fixture
def waiting(shell: Shell) -> Shell:
    """Five events of a night in which Stripe takes none."""
    shell.usage(5)
    shell.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, operation="meter_events.create", times=None))
    assert shell.run("report-usage", "--max-duration", "2s").code == 69
    shell.stripe.clear_faults()
    return shell


@contextmanager
def copied(pg_server: EmbeddedPostgres, shell: Shell) -> Iterator[Shell]:
    """The same ledger in another database, with a Stripe and a key of its own."""
    name = shell.sql("SELECT current_database()")[0][0]
    with clone(pg_server, name) as url, LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        stripe.create_customer("cus_1")
        yield Shell(database_url=url, stripe=stripe, home=shell.home)


def test_a_copy_sends_nothing_until_it_is_adopted_and_then_nothing_of_the_originals(
    pg_server: EmbeddedPostgres, waiting: Shell
) -> None:
    with copied(pg_server, waiting) as copy:
        refused = copy.run("report-usage")
        assert refused.code == 78
        assert "its database oid was" in refused.stderr
        assert "meterctl db adopt-copy" in refused.stderr
        adopted = copy.run("db", "adopt-copy", "--yes")
        assert (adopted.code, adopted.stderr) == (0, "closed 5 events\n")
        copy.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'u1', 7)")
        assert copy.run("report-usage").code == 0
        assert copy.total == 7
    assert waiting.run("report-usage").code == 0
    assert waiting.total == 5


def test_it_shows_what_it_will_doubt_and_asks(waiting: Shell) -> None:
    waiting.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'u1', 7)")
    asked = waiting.run("db", "recover", *AGO)
    assert asked.code == 2
    assert "--yes" in asked.stderr
    assert [line.split() for line in asked.stdout.splitlines() if line.startswith("ai_suggestion")] == [
        ["ai_suggestion", "pending", "5", "5", "1"],
        ["ai_suggestion", "rows", "without", "an", "event", "1", "-", "-"],
    ]
    assert {row[0] for row in waiting.sql("SELECT state FROM meterctl.meter_events")} == {"pending"}


def test_afterwards_totals_decide_before_anything_is_sent(waiting: Shell) -> None:
    waiting.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'u1', 7)")
    done = waiting.run("db", "recover", *AGO, "--yes", "--json")
    assert (done.code, done.document["recovered"]) == (0, 6)
    assert waiting.run("report-usage").code == 10, "what is in doubt is named"
    assert waiting.total == 0
    assert {row[0] for row in waiting.sql("SELECT state FROM meterctl.meter_events")} == {"in_doubt"}
    assert waiting.run("runs", "--json").document["runs"][1]["command"] == "db recover"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "2100-01-01"), "lies ahead"),
        ((*AGO, "--resend"), "leave out --resend"),
        (("--since", "yesterday"), "no instant"),
        (("--since", "0001-01-01T00:00:00+01:00"), "no instant"),
    ],
)
def test_what_makes_no_sense_is_refused(waiting: Shell, arguments: tuple[str, ...], said: str) -> None:
    done = waiting.run("db", "recover", *arguments, "--yes")
    assert (done.code, said in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("command", [("recover", *AGO), ("adopt-copy",)])
def test_live_mode_wants_the_account(waiting: Shell, command: tuple[str, ...]) -> None:
    waiting.sql("UPDATE meterctl.identity SET livemode = true")
    account = waiting.stripe.account_id
    refused = waiting.run("db", *command, "--yes", "--confirm", "acct_another")
    assert (refused.code, f"--confirm {account}" in refused.stderr) == (2, True)
    assert waiting.run("db", *command, "--yes", "--confirm", account).code == 0


def test_a_ledger_of_nobody_has_nothing_to_recover(shell: Shell) -> None:
    assert shell.run("db", "recover", *AGO, "--yes").code == 78


def test_a_ledger_of_before_takes_the_marks_of_where_it_is(shell: Shell) -> None:
    assert shell.run("report-usage").code == 0
    shell.sql("UPDATE meterctl.identity SET system_identifier = NULL, timeline = NULL, database_oid = NULL")
    assert shell.run("report-usage").code == 0
    marks = shell.sql("SELECT system_identifier, timeline, database_oid FROM meterctl.identity")[0]
    assert all(marks)


def test_marks_that_cannot_be_read_are_told_and_stop_nothing(shell: Shell) -> None:
    """As a managed service may forbid; what can be read is watched."""
    with open_roles() as roles:
        role = roles.create(shell.database_url)
        with psycopg.connect(shell.database_url) as connection:
            connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            connection.execute(
                f"GRANT USAGE ON SCHEMA meterctl TO {role};"
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA meterctl, public TO {role}"
            )
        job = Shell(database_url=as_role(shell.database_url, role), stripe=shell.stripe, home=shell.home)
        first, second = job.run("report-usage"), job.run("report-usage")
        assert (first.code, second.code) == (0, 0)
        assert ("copies_cannot_be_told" in first.stderr, "copies_cannot_be_told" in second.stderr) == (True, False)
        assert "WARN  system identifier cannot be read here" in job.run("db", "check").stdout


def test_adopting_wants_the_owner_and_says_so(waiting: Shell) -> None:
    """`db check` finds nothing missing in the job's role."""
    with open_roles() as roles:
        role = roles.create(waiting.database_url)
        with psycopg.connect(waiting.database_url) as connection:
            connection.execute(
                f"GRANT USAGE ON SCHEMA meterctl TO {role};"
                f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA meterctl, public TO {role}"
            )
        job = Shell(database_url=as_role(waiting.database_url, role), stripe=waiting.stripe, home=waiting.home)
        done = job.run("db", "adopt-copy", "--yes")
    assert (done.code, "run it as the owner of the schema meterctl" in done.stderr) == (77, True), done.stderr
    assert {row[0] for row in waiting.sql("SELECT state FROM meterctl.meter_events")} == {"pending"}
