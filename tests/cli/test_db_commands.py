"""`meterctl db …` as a child process: exit codes, streams, and what a person is shown."""

import json
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from cli.nursery import nursery
from meterctl.sandbox.postgres import EmbeddedPostgres
from roles import as_role, open_roles

TIMEOUT_S = 60
Result = subprocess.CompletedProcess[str]


def db(url: str, *arguments: str, config: Path | None = None) -> Result:
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": url}
    place = ["-c", str(config)] if config else []
    arguments = (*place, "db", *arguments)
    code, stdout, stderr = nursery().run(arguments, environment, stripe_base=None, timeout_s=TIMEOUT_S)
    return Result(arguments, code, stdout, stderr)


def sql(url: str, text: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text)


def test_migrate_says_what_it_applied_and_then_up_to_date(empty_database_url: str) -> None:
    first, second = db(empty_database_url, "migrate"), db(empty_database_url, "migrate")
    assert (first.returncode, first.stdout.splitlines()[0], first.stderr) == (0, "applied 0001_ledger", "")
    assert (second.returncode, second.stdout, second.stderr) == (0, "up to date\n", "")
    assert db(empty_database_url, "migrate", "-q").stdout == ""


def test_several_processes_may_migrate_at_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: db(empty_database_url, "migrate"), range(4)))
    assert [result.returncode for result in done] == [0, 0, 0, 0], [result.stderr for result in done]
    assert sorted(result.stdout.count("applied 0001_ledger") for result in done) == [0, 0, 0, 1]


def test_migrate_print_needs_no_database_and_its_script_suffices(empty_database_url: str) -> None:
    printed = db("", "migrate", "--print")
    assert (printed.returncode, printed.stderr) == (0, "")
    sql(empty_database_url, printed.stdout)
    sql(empty_database_url, printed.stdout)
    assert db(empty_database_url, "migrate").stdout == "up to date\n"


def test_migrate_without_the_right_names_the_grant_and_exits_77(empty_database_url: str) -> None:
    with open_roles() as roles:
        result = db(as_role(empty_database_url, roles.create(empty_database_url)), "migrate")
    assert result.returncode == 77
    assert "GRANT CREATE ON DATABASE" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["migrate", "check", "adopt"])
def test_without_a_server_the_exit_code_is_69(command: str) -> None:
    result = db("postgresql://postgres@127.0.0.1:1/nothing", command)
    assert result.returncode == 69
    assert result.stdout == ""


def test_check_shows_ok_lines_and_nothing_when_quiet(database_url: str) -> None:
    shown, quiet = db(database_url, "check"), db(database_url, "check", "-q")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(line.startswith("OK    ") for line in shown.stdout.splitlines())
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_check_of_an_empty_database_fails_with_78(empty_database_url: str) -> None:
    result = db(empty_database_url, "check", "--quiet")
    assert result.returncode == 78
    assert "FAIL  schema meterctl: the database has no meterctl schema; run `meterctl db migrate`" in result.stdout
    assert 'meters.ai_suggestion.table: there is no table "usage_events"' in result.stdout


def test_check_json_is_one_document(database_url: str) -> None:
    sql(database_url, "DROP INDEX usage_events_unreported")
    result = db(database_url, "check", "--json")
    document = json.loads(result.stdout)
    assert document.keys() == {"schema", "exit_code", "checks"}
    assert (document["schema"], document["exit_code"], result.returncode) == ("meterctl.db_check/1", 78, 78)
    assert all(check.keys() == {"status", "message"} for check in document["checks"])
    (failed,) = [check["message"] for check in document["checks"] if check["status"] == "fail"]
    assert failed.endswith("meterctl db adopt usage_events")


def test_check_with_privileges_missing_exits_77_and_its_grants_mend_it(database_url: str) -> None:
    with open_roles() as roles:
        url = as_role(database_url, roles.create(database_url))
        result = db(url, "check")
        assert result.returncode == 77
        for line in result.stdout.splitlines():
            if line.startswith("FAIL"):
                sql(database_url, line[line.index("GRANT") :])
        mended = db(url, "check")
        assert mended.returncode == 0, mended.stdout


def test_check_names_file_and_key(database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "meterctl.toml"
    config.write_text(
        '[lookups.o]\ntable = "subscriptions"\nsubject = "user_id"\ncustomer = "stripe_customer_id"\n'
        '[meters.x]\nsource = "rows"\nformula = "count"\ntable = "usage_event"\noccurred_at = "created_at"\n'
        'payers = [{ lookup = "o", column = "user_id" }]\n',
        encoding="utf-8",
    )
    result = db(database_url, "check", config=config)
    assert result.returncode == 78
    line = f'FAIL  {config}: meters.x.table: there is no table "usage_event"; did you mean "usage_events"?'
    assert line in result.stdout.splitlines()


def test_a_password_is_never_shown(pg_server: EmbeddedPostgres) -> None:
    url = pg_server.conninfo("no_such_database").replace("postgres@", "postgres:example-password@")
    for command in ("migrate", "check", "adopt"):
        result = db(url, command)
        assert result.returncode == 78
        assert "example-password" not in result.stdout + result.stderr


@pytest.fixture
def unadopted(database_url: str) -> str:
    sql(database_url, "ALTER TABLE usage_events DROP COLUMN stripe_reported_at")
    sql(
        database_url,
        "INSERT INTO usage_events (workspace_id, user_id, created_at)"
        " VALUES ('w', 'u', '2020-10-01'), ('w', 'u', now())",
    )
    return database_url


def test_adopt_shows_then_asks_and_without_a_terminal_needs_yes(unadopted: str) -> None:
    result = db(unadopted, "adopt")
    assert result.returncode == 2
    assert 'ALTER TABLE "public"."usage_events" ADD COLUMN' in result.stdout
    assert "--yes" in result.stderr
    assert db(unadopted, "adopt").stdout == result.stdout, "nothing was done"


@pytest.mark.parametrize(("answer", "after"), [("y", 0), ("n", 78)])
def test_adopt_asks_on_a_terminal_and_does_as_told(unadopted: str, answer: str, after: int) -> None:
    person, terminal = pty.openpty()
    os.write(person, f"{answer}\n".encode())
    result = subprocess.run(
        [sys.executable, "-m", "meterctl", "db", "adopt"],
        env={"PATH": os.environ["PATH"], "DATABASE_URL": unadopted},
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=False,
        timeout=TIMEOUT_S,
    )
    asked = os.read(person, 10_000).decode()
    os.close(terminal)
    os.close(person)
    assert result.returncode == 0
    assert "Do this now?" in asked
    assert b"ADD COLUMN" in result.stdout
    assert db(unadopted, "check").returncode == after


def test_adopt_does_it_once_and_then_there_is_nothing_to_do(unadopted: str) -> None:
    first, second = db(unadopted, "adopt", "usage_events", "--yes"), db(unadopted, "adopt", "--yes")
    assert (first.returncode, first.stderr) == (0, "done\n")
    assert (second.returncode, second.stdout) == (0, "-- nothing to do\n")
    assert db(unadopted, "check").returncode == 0


def test_adopt_print_changes_nothing_and_what_it_prints_suffices(unadopted: str) -> None:
    """Run as psql does, statement by statement: an index cannot be built within a transaction."""
    printed = db(unadopted, "adopt", "--print", "--cut-over", "2020-11-01")
    assert printed.returncode == 0
    assert db(unadopted, "check").returncode == 78
    plain = "\n".join(line for line in printed.stdout.splitlines() if not line.startswith("--"))
    with psycopg.connect(unadopted, autocommit=True) as connection:
        for statement in plain.split(";\n"):
            connection.execute(statement)
    assert db(unadopted, "check").returncode == 0
    assert count_unreported(unadopted) == 1


def test_adopt_at_a_cut_over_marks_what_the_predecessor_reported(unadopted: str) -> None:
    assert db(unadopted, "adopt", "--cut-over", "2020-11-01T00:00:00Z", "--yes").returncode == 0
    assert count_unreported(unadopted) == 1
    again = db(unadopted, "adopt", "--cut-over", "2020-11-01T00:00:00Z", "--yes")
    assert again.returncode == 2
    assert "1 of its rows are unreported" in again.stderr


def count_unreported(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["usage_event"], 'did you mean "usage_events"?'),
        (["--cut-over", "yesterday"], "is no instant"),
        (["--cut-over", "2126-01-01"], "lies in the future"),
    ],
)
def test_adopt_refuses_a_wrong_command_line_with_2(unadopted: str, arguments: list[str], complaint: str) -> None:
    result = db(unadopted, "adopt", "--yes", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert result.stdout == ""


def test_adopt_by_another_role_exits_77_and_names_the_owner(unadopted: str) -> None:
    with open_roles() as roles:
        result = db(as_role(unadopted, roles.create(unadopted)), "adopt", "--yes")
    assert result.returncode == 77
    assert "belongs to postgres" in result.stderr


def test_adopt_of_a_busy_table_exits_69(unadopted: str) -> None:
    with psycopg.connect(unadopted) as other:
        other.execute("SELECT count(*) FROM usage_events")
        result = db(unadopted, "adopt", "--yes")
    assert result.returncode == 69
    assert "the table is busy" in result.stderr
    assert "try again" in result.stderr


def test_every_option_has_help() -> None:
    for command in ("migrate", "check", "adopt"):
        result = db("", command, "--help")
        assert result.returncode == 0
        options = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("-")]
        assert options
        assert all("  " in option or len(option) > 20 for option in options), result.stdout
