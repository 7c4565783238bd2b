"""`meterctl webhooks replay`, `list` and `show`, as an operator uses them."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Finished, Shell


def ended(shell: Shell, name: str = "ada") -> str:
    """A subscription that began and ended, as Stripe tells of it; its id."""
    subscription = shell.stripe.create_subscription(f"cus_{name}")
    shell.stripe.complete_checkout(subscription, client_reference_id=name)
    shell.stripe.clock.advance(timedelta(minutes=1))
    shell.stripe.end_subscription(subscription)
    return subscription


def documents(shell: Shell) -> list[dict[str, Any]]:
    return [event.document() for event in shell.stripe.snapshot_events()]


def written(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def row(shell: Shell) -> tuple[str, bool]:
    (found,) = shell.sql("SELECT status, ended_at IS NOT NULL FROM subscriptions WHERE user_id = 'ada'")
    return found[0], found[1]


@pytest.fixture
def broken(shell: Shell) -> Shell:
    """The events of a subscription failed, for the table refused its row; since mended."""
    ended(shell)
    shell.sql("ALTER TABLE subscriptions ADD CONSTRAINT no_ada CHECK (user_id <> 'ada')")
    assert shell.run("webhooks", "pull").code == 10
    shell.sql("ALTER TABLE subscriptions DROP CONSTRAINT no_ada")
    return shell


def lines(done: Finished) -> list[str]:
    """Each event's line without its instant."""
    return [" ".join(line.split(" ")[1:2] + line.split(" ")[3:]) for line in done.stdout.splitlines()[:-1]]


def test_what_failed_is_replayed_when_its_cause_is_mended(broken: Shell) -> None:
    done = broken.run("webhooks", "replay", "--failed")
    assert done.code == 0, done.stdout
    assert row(broken) == ("canceled", True)
    assert broken.sql("SELECT count(*) FROM meterctl.stripe_events WHERE status = 'failed'") == [(0,)]
    assert broken.run("webhooks", "replay", "--failed").stdout == "nothing to do\n"


def test_each_event_says_what_it_did_or_why_it_was_skipped_oldest_first(shell: Shell) -> None:
    ended(shell)
    shell.run("webhooks", "pull", "-q")
    done = shell.run("webhooks", "replay", "--since", "2020-01-01")
    assert done.code == 0
    assert [line.split(":")[0] for line in lines(done)][-1].startswith("customer.subscription.deleted skipped")
    assert "3 skipped" in done.stdout
    assert "processed at " in done.stdout


def test_force_asks_first_and_the_row_is_the_same_afterwards(shell: Shell) -> None:
    ended(shell)
    shell.run("webhooks", "pull", "-q")
    arguments = ("webhooks", "replay", "--force", "--since", "2020-01-01")
    unasked = shell.run(*arguments)
    assert (unasked.code, unasked.stdout) == (2, "")
    assert "no terminal" in unasked.stderr
    done = shell.run(*arguments, "--yes")
    assert (done.code, done.stdout.splitlines()[-1]) == (0, "3 processed")
    assert row(shell) == ("canceled", True)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(broken: Shell, tmp_path: Path) -> None:
    (failed, *_) = broken.sql("SELECT event_id FROM meterctl.stripe_events WHERE status = 'failed'")
    done = broken.run("webhooks", "replay", failed[0], "-n", "--json")
    assert [(one["event_id"], one["status"]) for one in done.document["events"]] == [(failed[0], "processed")]
    assert done.document["dry_run"] is True
    assert broken.sql("SELECT count(*) FROM subscriptions") == [(0,)]
    new = documents(broken)[0] | {"id": "evt_new"}
    done = broken.run("webhooks", "replay", "-n", "--file", written(tmp_path / "f", new))
    assert "evt_new" in done.stdout
    assert broken.sql("SELECT FROM meterctl.stripe_events WHERE event_id = 'evt_new'") == []


def test_a_file_in_any_order_and_with_broken_lines(shell: Shell, tmp_path: Path) -> None:
    ended(shell)
    first, second, third = documents(shell)
    file = written(tmp_path / "f.jsonl", third, "{", first, "", {"object": "list"}, second, first)
    done = shell.run("webhooks", "replay", "--file", file)
    assert done.code == 65
    assert [line.removeprefix("meterctl: ") for line in done.stderr.splitlines() if "f.jsonl" in line] == [
        f"{file}: line 2: this is no JSON in UTF-8",
        f'{file}: line 5: this is no event of Stripe\'s: it is no object of the kind "event" or "v2.core.event"',
    ]
    assert done.stdout.splitlines()[-1] == "3 processed"
    assert row(shell) == ("canceled", True)
    assert shell.sql("SELECT DISTINCT source FROM meterctl.stripe_events") == [("file",)]


def test_a_file_that_is_none_is_not_named_line_by_line(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("webhooks", "replay", "--file", written(tmp_path / "f", *["nonsense"] * 1000))
    assert done.code == 65
    assert len(done.stderr.splitlines()) == 21
    assert "980 more broken lines" in done.stderr


@pytest.mark.parametrize(
    ("change", "why"),
    [({"livemode": True}, "of live mode"), ({"account": "acct_another"}, "of account acct_another")],
)
def test_another_modes_or_accounts_event_is_refused_and_not_stored(
    shell: Shell, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    shell.usage()
    shell.run("report-usage", "-q")
    ended(shell)
    first, second, _ = documents(shell)
    done = shell.run("webhooks", "replay", "--file", written(tmp_path / "f", first | change, second))
    assert done.code == 65
    assert f"refused: {why}" in done.stdout
    assert shell.sql("SELECT event_id FROM meterctl.stripe_events") == [(second["id"],)]


def test_stored_events_of_the_other_mode_are_refused_too(shell: Shell) -> None:
    ended(shell)
    foreign = documents(shell)[0] | {"livemode": True}
    shell.sql("SELECT meterctl.store_stripe_event(%s)", json.dumps(foreign))
    done = shell.run("webhooks", "replay", foreign["id"])
    assert (done.code, shell.sql("SELECT status FROM meterctl.stripe_events")) == (65, [("received",)])


def test_a_ledger_of_the_other_mode_is_refused(shell: Shell) -> None:
    shell.usage()
    shell.run("report-usage", "-q")
    shell.sql("UPDATE meterctl.identity SET livemode = true")
    assert shell.run("webhooks", "replay").code == 78


def test_unknown_ids_and_senseless_options_are_told(shell: Shell, tmp_path: Path) -> None:
    missing = shell.run("webhooks", "replay", "evt_none")
    assert (missing.code, "evt_none" in missing.stderr) == (65, True)
    both = shell.run("webhooks", "replay", "evt_none", "--file", str(tmp_path))
    assert (both.code, "--file" in both.stderr) == (2, True)
    assert shell.run("webhooks", "replay", "--file", str(tmp_path / "none")).code == 2
    assert shell.run("webhooks", "show", "evt_none").code == 65
    assert shell.run("webhooks", "list", "--status", "lost").code == 2


def test_list_and_show(broken: Shell) -> None:
    listed = broken.run("webhooks", "list", "--status", "failed", "--json").document["events"]
    assert {event["status"] for event in listed} == {"failed"}
    assert all("no_ada" in event["error"] for event in listed)
    assert broken.run("webhooks", "list", "--type", "invoice.paid").stdout == "no event matches\n"
    table = broken.run("webhooks", "list", "--limit", "1")
    assert len(table.stdout.splitlines()) == 2
    assert "--limit" in table.stderr
    shown = broken.run("webhooks", "show", listed[0]["event_id"], "--json").document["events"]
    assert shown[0]["payload"]["id"] == listed[0]["event_id"]
    assert shown[0]["error_report"] == []
    assert listed[0]["event_id"] in broken.run("webhooks", "show", listed[0]["event_id"]).stdout


def test_show_says_what_an_error_report_came_to(shell: Shell) -> None:
    shell.usage(quantity=3)
    shell.stripe.reject_later(customer="cus_1")
    shell.run("report-usage", "-q")
    shell.stripe.report_error(identifier="somebody-elses", code="meter_event_invalid_value", error_count=4)
    shell.stripe.clock.advance(timedelta(seconds=30))
    shell.run("webhooks", "pull", "-q")
    ids = [event_id for (event_id,) in shell.sql("SELECT event_id FROM meterctl.stripe_events ORDER BY created")]
    shown = shell.run("webhooks", "show", *ids).stdout
    assert "meter_event_customer_not_found: ledger event 1, in_doubt; not decided yet" in shown
    assert "somebody-elses meter_event_invalid_value: none of ours; foreign" in shown
