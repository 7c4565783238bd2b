"""`ledger`, `summary` and `runs` as an operator or an auditor uses them."""

import pytest

from cli.conftest import Shell
from meterctl.sandbox.local_stripe import Fault, FaultKind


@pytest.fixture
def rejected(shell: Shell) -> Shell:
    """Three events of a customer Stripe did not know, who is known by now."""
    shell.usage(3, known=False)
    assert shell.run("report-usage").code == 10
    shell.stripe.create_customer("cus_1")
    return shell


def test_a_rejection_is_listed_shown_retried_and_reported(rejected: Shell) -> None:
    listed = rejected.run("ledger", "list", "--state", "rejected", "--json").document
    assert listed["schema"] == "meterctl.ledger/1"
    assert [event["error_code"] for event in listed["events"]] == ["resource_missing"] * 3
    assert listed["events"][0]["quantity"] == "1"
    event = listed["events"][0]
    shown = rejected.run("ledger", "show", str(event["id"])).stdout
    assert "No such customer" in shown
    assert rejected.run("ledger", "show", event["identifier"], "--json").document["events"][0]["id"] == event["id"]
    done = rejected.run("ledger", "retry", "--code", "resource_missing", "--reason", "customer created", "--yes")
    assert done.code == 0
    assert "3 events are due again" in done.stdout
    assert "would retry 3 events, 3 units, 1 customers" in done.stderr
    assert rejected.run("report-usage").code == 0
    assert rejected.total == 3
    rejected.assert_exact()
    assert rejected.run("summary", "-q").code == 0


def test_without_a_terminal_nothing_is_done_unasked(rejected: Shell) -> None:
    done = rejected.run("ledger", "retry", "--code", "resource_missing", "--reason", "why not")
    assert done.code == 2
    assert "would retry 3 events" in done.stderr
    assert "--yes" in done.stderr
    assert {row[0] for row in rejected.sql("SELECT state FROM meterctl.meter_events")} == {"rejected"}


def test_a_dry_run_changes_nothing(rejected: Shell) -> None:
    done = rejected.run("ledger", "waive", "--code", "resource_missing", "--reason", "r", "-n")
    assert done.code == 0
    assert {row[0] for row in rejected.sql("SELECT state FROM meterctl.meter_events")} == {"rejected"}


def test_waiving_in_bulk_quiets_the_summary(rejected: Shell) -> None:
    assert rejected.run("summary").code == 10
    done = rejected.run("ledger", "waive", "--customer", "cus_1", "--reason", "test customer", "--yes", "--json")
    assert len(done.document["waive"]) == 3
    assert rejected.run("summary").code == 0


def test_an_identifier_that_somebody_took_is_not_retried_in_bulk(shell: Shell) -> None:
    shell.usage(1)
    row_id = shell.sql("SELECT id FROM usage_events")[0][0]
    shell.stripe.add_fault(
        Fault(kind=FaultKind.BAD_REQUEST, message=f"An event already exists with identifier ws-u1-{row_id}.")
    )
    assert shell.run("report-usage").code == 10
    bulk = shell.run("ledger", "retry", "--code", "identifier_taken", "--reason", "r", "--yes")
    assert bulk.code == 0
    assert "billed a second time" in bulk.stderr
    assert "no event matches" in bulk.stderr
    event_id = str(shell.sql("SELECT id FROM meterctl.meter_events")[0][0])
    assert "due again" in shell.run("ledger", "retry", event_id, "--reason", "it was not ours", "--yes").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("retry", "--reason", "r"), 2, "which events"),
        (("retry", "1"), 2, "--reason"),
        (("retry", "1", "--reason", " "), 2, "--reason is empty"),
        (("retry", "x", "--reason", "r"), 2, "no event id"),
        (("retry", "999", "--reason", "r"), 65, "no event 999"),
        (("show", "999"), 65, "no event 999"),
        (("list", "--state", "lost"), 2, "states:"),
        (("list", "--since", "yesterday"), 2, "instant"),
        (("waive", "--code", "nothing", "--reason", "r"), 0, "no event matches"),
    ],
)
def test_wrong_input_is_explained(shell: Shell, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = shell.run("ledger", *arguments)
    assert done.code == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_only_what_was_rejected_can_be_retried(shell: Shell) -> None:
    shell.usage(1)
    shell.run("report-usage")
    event_id = str(shell.sql("SELECT id FROM meterctl.meter_events")[0][0])
    done = shell.run("ledger", "retry", event_id, "--reason", "r", "--yes")
    assert done.code == 65
    assert "is accepted" in done.stderr


def test_summary_says_how_things_stand(shell: Shell) -> None:
    shell.usage(3, quantity=2)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id) VALUES ('ws', 'free')")
    before = shell.run("summary", "--json").document
    assert (before["meters"][0]["unreported"], before["account"], before["last_run"]) == (4, None, None)
    shell.run("report-usage")
    document = shell.run("summary", "--json").document
    assert document["schema"] == "meterctl.summary/1"
    meter = document["meters"][0]
    assert (meter["accepted"], meter["accepted_units"], meter["unreported"]) == (3, "6", 1)
    assert (document["account"], document["mode"]) == (shell.stripe.account_id, "test")
    assert document["last_run"]["outcome"] == "0"
    assert document["problems"] == []
    text = shell.run("summary").stdout
    assert "ai_suggestion" in text


def test_events_of_a_meter_nobody_configured_are_named(shell: Shell) -> None:
    shell.usage(1)
    shell.stripe.add_fault(Fault(kind=FaultKind.UNAUTHORIZED, times=None))
    shell.run("report-usage")
    shell.extra = {"STRIPE_METER_EVENT_NAME": "renamed"}
    done = shell.run("summary", "--json")
    assert done.code == 10
    assert [problem["code"] for problem in done.document["problems"]] == ["unknown_meter"]


def test_a_stopped_cron_is_visible(shell: Shell) -> None:
    assert shell.run("summary", "--max-age", "26h", "-q").code == 11
    shell.run("report-usage")
    assert shell.run("summary", "--max-age", "26h", "-q").code == 0
    shell.sql("UPDATE meterctl.runs SET finished_at = now() - interval '27 hours'")
    done = shell.run("summary", "--max-age", "26h", "-q")
    assert done.code == 11
    assert "TOO OLD" in done.stdout


def test_runs_tells_the_dead_from_the_living(shell: Shell) -> None:
    shell.run("report-usage")
    shell.sql(
        "INSERT INTO meterctl.runs (command, mode, account, host, pid, version, started_at)"
        " VALUES ('report', 'test', 'a', 'gone', 1, '0', now())"
    )
    found = shell.run("runs", "--json").document["runs"]
    assert [(run["command"], run["outcome"]) for run in found] == [("report", "died"), ("report-usage", "0")]
    assert "died" in shell.run("runs").stdout
