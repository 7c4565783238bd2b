"""`summary`, `runs` and `ledger` where it matters what a terminal, a script or a changed configuration sees."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.conftest import Finished, Shell
from meterctl.settings import shipped_text

METER_KEYS = [
    "event_name",
    "pending",
    "sending",
    "in_doubt",
    "held",
    "held_by_age",
    "rejected",
    "expired",
    "oldest_open",
    "accepted",
    "accepted_units",
    "late",
    "late_units",
    "unreported",
    "oldest_unreported",
    "proven_up_to",
]

SUMMARY_KEYS = [
    "schema",
    "at",
    "account",
    "mode",
    "exit_code",
    "last_run",
    "last_good_run_at",
    "too_old",
    "meters",
    "problems",
]

RUN_KEYS = [
    "id",
    "command",
    "mode",
    "account",
    "host",
    "pid",
    "version",
    "started_at",
    "finished_at",
    "exit_code",
    "counts",
    "outcome",
]


@pytest.fixture
def rejected(shell: Shell) -> Shell:
    """Three events of a customer Stripe did not know, who is known by now."""
    shell.usage(3, quantity=2, known=False)
    assert shell.run("report-usage").code == 10
    shell.stripe.create_customer("cus_1")
    return shell


def states(shell: Shell) -> list[str]:
    return sorted(row[0] for row in shell.sql("SELECT state FROM meterctl.meter_events"))


def event_ids(shell: Shell) -> list[str]:
    return [str(row[0]) for row in shell.sql("SELECT id FROM meterctl.meter_events ORDER BY id")]


def on_a_terminal(shell: Shell, *arguments: str, answer: str = "", columns: int = 100, **extra: str) -> Finished:
    """Run the command with a terminal for all its streams; what it wrote is in `stdout`."""
    ours, theirs = pty.openpty()
    environment = shell.environment | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "50"} | extra
    command = [sys.executable, "-m", "meterctl", *arguments]
    child = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    if answer:
        os.write(ours, f"{answer}\n".encode())
    written = b""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        try:
            written += os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side has closed the terminal
            break
    os.close(ours)
    return Finished(child.wait(timeout=10), written.decode().replace("\r\n", "\n"), "")


# summary


def test_the_keys_of_a_summary_are_pinned(rejected: Shell) -> None:
    done = rejected.run("summary", "--json")
    document = done.document
    assert list(document) == SUMMARY_KEYS
    assert list(document["meters"][0]) == METER_KEYS
    assert list(document["last_run"]) == RUN_KEYS
    assert list(document["problems"][0]) == ["event_name", "code", "count", "sample_ids", "hint"]
    assert (done.code, document["exit_code"], document["meters"][0]["accepted_units"]) == (10, 10, "0")
    assert document["at"].endswith("Z")


def test_a_rejection_is_told_with_its_rows_and_the_command_that_helps(rejected: Shell) -> None:
    done = rejected.run("summary")
    assert done.code == 10
    assert "3 resource_missing (e.g. 1, 2, 3)" in done.stdout
    assert "meterctl ledger retry --code resource_missing" in done.stdout
    assert f"account {rejected.stripe.account_id}, test mode" in done.stdout


def test_quiet_speaks_only_while_a_person_is_needed(rejected: Shell) -> None:
    assert "resource_missing" in rejected.run("summary", "-q").stdout
    rejected.run("ledger", "waive", "--meter", "ai_suggestion", "--reason", "test data", "--yes")
    done = rejected.run("summary", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_free_rows_are_said_to_be_among_the_unreported(shell: Shell) -> None:
    shell.sql("INSERT INTO usage_events (workspace_id, user_id) VALUES ('ws', 'free')")
    done = shell.run("summary")
    assert done.code == 0
    assert "rows of free users are among them" in done.stdout


def test_an_old_doubt_is_named_and_after_three_days_it_is_a_problem(rejected: Shell) -> None:
    rejected.sql(
        "UPDATE meterctl.meter_events SET state = 'in_doubt', ever_in_doubt = true,"
        " doubt_since = now() - interval '25 hours'"
    )
    done = rejected.run("summary")
    assert (done.code, "3 in doubt that only Stripe's totals decide" in done.stdout) == (0, True)
    rejected.sql("UPDATE meterctl.meter_events SET doubt_since = now() - interval '3 days'")
    done = rejected.run("summary")
    assert (done.code, "3 held (e.g." in done.stdout) == (10, True)


def test_a_meter_nobody_knows_is_a_wrong_command_line(shell: Shell) -> None:
    """A monitor with a misspelt --meter must not see exit 0 for ever."""
    done = shell.run("summary", "--meter", "ai_sugestion")
    assert done.code == 2
    assert "ai_suggestion" in done.stderr
    assert shell.run("summary", "--meter", "ai_suggestion").code == 0


def test_a_configured_meter_without_events_is_listed(shell: Shell) -> None:
    assert [meter["event_name"] for meter in shell.run("summary", "--json").document["meters"]] == ["ai_suggestion"]


def test_help_says_how_far_back_late_counts(shell: Shell) -> None:
    text = " ".join(shell.run("summary", "--help").stdout.split())
    assert "Accepted and late events are those of the last 35 days" in text


def test_late_events_of_the_last_35_days_are_a_problem_and_older_ones_are_not(rejected: Shell) -> None:
    accepted = "UPDATE meterctl.meter_events SET state = 'accepted', settled_by = 'answer', late = true, accepted_at ="
    rejected.sql(f"{accepted} now() - interval '34 days'")
    done = rejected.run("summary", "--json")
    assert done.code == 10
    assert [(p["code"], p["count"]) for p in done.document["problems"]] == [("late", 3)]
    assert "6 units" in done.document["problems"][0]["hint"]
    rejected.sql(f"{accepted} now() - interval '36 days'")
    assert rejected.run("summary").code == 0


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_gets_a_table_that_fits_it(rejected: Shell, columns: int) -> None:
    done = on_a_terminal(rejected, "summary", columns=columns, TERM="dumb")
    assert done.code == 10
    assert "\x1b" not in done.stdout
    table = done.stdout[done.stdout.index("meter   ") : done.stdout.index("ai_suggestion: 3")]
    assert ["rejected", "3"] in [line.split() for line in table.splitlines()]
    assert max(map(len, table.splitlines())) <= columns


def test_the_commands_that_the_summary_names_do_close_its_problems(rejected: Shell) -> None:
    rejected.usage(1, known=False)
    rejected.sql("UPDATE usage_events SET created_at = now() - interval '40 days' WHERE id = 4")
    rejected.run("report-usage")
    problems = rejected.run("summary", "--json").document["problems"]
    assert [problem["code"] for problem in problems] == ["expired", "resource_missing"]
    for problem in problems:
        (command,) = re.findall("`meterctl (ledger .*) --reason", problem["hint"])
        assert rejected.run(*command.split(), "--reason", "as the summary said", "--yes").stdout
    assert rejected.run("summary").code == 0
    assert states(rejected) == ["pending"] * 3 + ["replaced"] * 3 + ["waived"]


# runs


def test_runs_say_what_came_of_them(rejected: Shell) -> None:
    rejected.run("report-usage")
    rejected.sql(
        "INSERT INTO meterctl.runs (command, mode, account, host, pid, version, started_at, finished_at, exit_code)"
        " VALUES ('report', 'test', 'a', 'h', 1, '9', now(), now(), 42)"
    )
    done = rejected.run("runs")
    assert done.code == 0
    newest, middle, oldest = done.stdout.splitlines()[1:]
    assert "42" in newest, "a code that only a newer meterctl knows"
    assert "done, or nothing to do" in middle
    assert "problems for a person" in oldest
    limited = rejected.run("runs", "--limit", "1", "--json").document
    assert limited["schema"] == "meterctl.runs/1"
    assert [list(run) for run in limited["runs"]] == [RUN_KEYS]


def test_no_runs_yet_is_said(shell: Shell) -> None:
    done = shell.run("runs")
    assert (done.code, done.stdout, done.stderr) == (0, "no runs yet\n", "")


# ledger list and show


def test_a_list_that_was_cut_says_so(rejected: Shell) -> None:
    done = rejected.run("ledger", "list", "--limit", "2")
    assert len(done.stdout.splitlines()) == 3
    assert "--limit shows more" in done.stderr
    assert rejected.run("ledger", "list").stderr == ""


def test_a_chain_of_replacements_is_shown(rejected: Shell) -> None:
    first = event_ids(rejected)[0]
    rejected.run("ledger", "retry", first, "--reason", "customer created", "--yes")
    last = event_ids(rejected)[-1]
    text = rejected.run("ledger", "show", first).stdout
    assert f"{first} replaced" in text
    assert f"{last} pending" in text
    assert "customer created" in text
    (event,) = rejected.run("ledger", "show", first, "--json").document["events"]
    assert [(str(link["id"]), link["state"]) for link in event["chain"]] == [(first, "replaced"), (last, "pending")]
    assert (event["replaces"], str(event["replaced_by"])) == (None, last)


def test_several_are_shown_by_id_and_by_identifier(rejected: Shell) -> None:
    first, second, _ = event_ids(rejected)
    identifier = rejected.sql("SELECT identifier FROM meterctl.meter_events WHERE id = %s", int(second))[0][0]
    found = rejected.run("ledger", "show", first, identifier, "--json").document["events"]
    assert {str(event["id"]) for event in found} == {first, second}


@pytest.mark.parametrize("name", ["99999999999999999999999", "²", "no-such-identifier"])
def test_a_name_no_event_has_is_bad_input(shell: Shell, name: str) -> None:
    done = shell.run("ledger", "show", name)
    assert done.code == 65
    assert name in done.stderr


def test_control_characters_of_the_application_do_not_reach_the_terminal(rejected: Shell) -> None:
    rejected.sql("UPDATE meterctl.meter_events SET subject = %s", "a\x1b[2Jb")
    first = event_ids(rejected)[0]
    assert r"a\x1b[2Jb" in rejected.run("ledger", "show", first).stdout


# ledger retry and waive


def test_a_dry_run_says_what_a_retry_would_take_and_refuse(rejected: Shell) -> None:
    rejected.sql("UPDATE usage_events SET quantity = 'NaN' WHERE id = 1")
    done = rejected.run("ledger", "retry", "--code", "resource_missing", "--reason", "r", "--dry-run", "--json")
    first, *others = map(int, event_ids(rejected))
    found = {"meter": "ai_suggestion", "state": "rejected", "code": "resource_missing", "count": 3, "units": "6"}
    assert done.document == {
        "schema": "meterctl.ledger/1",
        "command": "retry",
        "dry_run": True,
        "reason": "r",
        "found": [found | {"sample_ids": [first, *others]}],
        "left_out": 0,
        "retry": others,
        "refused": [
            {
                "id": first,
                "reason": "still local:value_not_a_number: row 1 of usage_events has the quantity NaN",
            }
        ],
    }
    assert states(rejected) == ["rejected"] * 3


def test_more_than_a_batch_is_retried(rejected: Shell) -> None:
    rejected.sql("UPDATE meterctl.meter_events SET state = 'waived', closed_reason = 'fixture'")
    rejected.sql(
        "WITH row AS (INSERT INTO usage_events (workspace_id, user_id, created_at)"
        "             SELECT 'ws', 'u1', now() - interval '1 hour' FROM generate_series(1, 1201) RETURNING *)"
        " INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        "     sent_timestamp, payload, source_row_id, state, error_code, collected_at, livemode, account)"
        " SELECT 'ai_suggestion', 'ai_suggestion', 'ws-u1-' || id, 'cus_1', 1, 1, created_at, created_at, '{}',"
        "     id, 'rejected', 'resource_missing', now(), false, 'acct' FROM row"
    )
    done = rejected.run("ledger", "retry", "--customer", "cus_1", "--reason", "r", "--yes")
    assert (done.code, done.stdout) == (0, "1201 events are due again; the next report delivers them\n")
    assert states(rejected).count("pending") == 1201
    done = rejected.run("ledger", "retry", "--customer", "cus_1", "--reason", "r", "--yes")
    assert (done.code, done.stdout, "no event matches" in done.stderr) == (0, "", True)


@pytest.mark.parametrize(("disabled", "why"), [(False, "is not configured any more"), (True, "is disabled")])
def test_events_of_a_meter_that_no_report_would_deliver_are_not_retried(
    rejected: Shell, tmp_path: Path, *, disabled: bool, why: str
) -> None:
    """Found out before anything is changed, the events of the meters that could be retried included."""
    last = event_ids(rejected)[-1]
    rejected.sql("UPDATE meterctl.meter_events SET meter = 'gone' WHERE id = %s", int(last))
    if disabled:
        shipped = shipped_text()
        meter = shipped[shipped.index("[meters.ai_suggestion]") : shipped.index("[meters.active_sensors]")]
        gone = meter.replace("[meters.ai_suggestion]", "[meters.gone]\nenabled = false").replace("_reported", "_gone")
        config = tmp_path / "meterctl.toml"
        config.write_text(shipped + gone)
        rejected.extra = {"METERCTL_CONFIG": str(config)}
    done = rejected.run("ledger", "retry", "--code", "resource_missing", "--reason", "r", "--yes")
    assert (done.code, states(rejected)) == (78, ["rejected"] * 3)
    assert f"meter gone {why}" in done.stderr
    assert rejected.run("ledger", "waive", last, "--reason", "r", "--yes").code == 0


@pytest.mark.parametrize(
    ("verb", "state", "said"),
    [
        ("waive", "accepted", "so it is billed"),
        ("retry", "expired", "ledger waive"),
        ("waive", "pending", "the next report sends it"),
        ("retry", "replaced", "its successor"),
    ],
)
def test_other_states_are_explained_and_nothing_is_changed(rejected: Shell, verb: str, state: str, said: str) -> None:
    first, second, _ = event_ids(rejected)
    rejected.sql(
        "UPDATE meterctl.meter_events SET state = %s, accepted_at = now(), settled_by = 'answer', closed_reason = 'x'"
        " WHERE id = %s",
        state,
        int(first),
    )
    done = rejected.run("ledger", verb, first, second, "--reason", "r", "--yes")
    assert done.code == 65
    assert f"event {first} is {state}" in done.stderr
    assert said in done.stderr
    assert states(rejected) == sorted(["rejected", "rejected", state])


def test_a_taken_identifier_is_retried_by_id_with_a_warning(rejected: Shell) -> None:
    rejected.sql("UPDATE meterctl.meter_events SET error_code = 'identifier_taken' WHERE id = 1")
    done = rejected.run("ledger", "retry", "--meter", "ai_suggestion", "--reason", "r", "--yes", "--json")
    assert (done.document["left_out"], len(done.document["retry"])) == (1, 2)
    done = rejected.run("ledger", "retry", event_ids(rejected)[0], "--reason", "not ours", "--yes")
    assert done.code == 0
    assert "bills it a second time" in done.stderr


@pytest.mark.parametrize(("answer", "code", "after"), [("n", 0, "rejected"), ("y", 0, "waived")])
def test_a_terminal_is_asked(rejected: Shell, answer: str, code: int, after: str) -> None:
    done = on_a_terminal(rejected, "ledger", "waive", "--meter", "ai_suggestion", "--reason", "r", answer=answer)
    assert "would waive 3 events, 6 units, 1 customers" in done.stdout
    assert (done.code, set(states(rejected))) == (code, {after})


def test_two_operators_at_once_issue_each_event_once(rejected: Shell) -> None:
    command = ("ledger", "retry", "--code", "resource_missing", "--reason", "r", "--yes")
    children = [rejected.start(*command) for _ in range(2)]
    for child in children:
        child.communicate(timeout=60)
    assert {child.returncode for child in children} == {0}
    assert states(rejected) == ["pending"] * 3 + ["replaced"] * 3
    assert rejected.run("report-usage").code == 0
    assert rejected.total == 6
    rejected.assert_exact()
