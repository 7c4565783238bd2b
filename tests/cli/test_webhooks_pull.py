"""`meterctl webhooks pull`, as cron runs it."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from cli.conftest import Shell
from meterctl.clock import SystemHostClock
from meterctl.postgres.lock import MeterLocks
from meterctl.sandbox.local_stripe import Fault, FaultKind

OWN_TYPES = "customer.subscription.created,customer.subscription.updated"


def statuses(shell: Shell) -> dict[str, str]:
    return dict(shell.sql("SELECT event_id, status FROM meterctl.stripe_events"))


def subscribed(shell: Shell, name: str = "ada") -> str:
    """A subscription by checkout, as Stripe tells of it."""
    subscription = shell.stripe.create_subscription(f"cus_{name}")
    shell.stripe.complete_checkout(subscription, client_reference_id=name)
    return subscription


def test_it_reads_the_lists_and_acts_on_what_is_new(shell: Shell) -> None:
    subscription = subscribed(shell)
    first = shell.run("webhooks", "pull")
    assert (first.code, first.stdout) == (0, "2 new events (0 known); 2 processed\n")
    rows = shell.sql("SELECT user_id, stripe_customer_id, stripe_subscription_id, status FROM subscriptions")
    assert rows == [("ada", "cus_ada", subscription, "active")]
    second = shell.run("webhooks", "pull", "--json")
    assert second.document == {
        "schema": "meterctl.webhooks_pull/1",
        "dry_run": False,
        "exit_code": 0,
        "new": 0,
        "known": 2,
        "processed": 0,
        "ignored": 0,
        "failed": 0,
        "skipped": 0,
        "refused": 0,
        "left": 0,
        "events": [],
        "notes": [],
    }


def test_quiet_prints_nothing_when_all_is_well(shell: Shell) -> None:
    subscribed(shell)
    done = shell.run("webhooks", "pull", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_the_nightly_report_after_it_bills_who_subscribed(shell: Shell) -> None:
    """Nothing but the events told who pays."""
    shell.stripe.create_customer("cus_ada")
    subscribed(shell)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id, created_at) VALUES ('w', 'ada', now())")
    assert shell.run("webhooks", "pull", "-q").code == 0
    assert shell.run("report", "-q").code == 0
    assert shell.total == 1
    shell.assert_exact()


def test_a_rejection_after_the_200_is_told_by_pull_report_and_summary(shell: Shell) -> None:
    shell.usage(quantity=3)
    shell.stripe.reject_later(customer="cus_1")
    assert shell.run("report-usage", "-q").code == 0
    shell.stripe.clock.advance(timedelta(seconds=30))
    pulled = shell.run("webhooks", "pull", "--json")
    assert pulled.code == 0
    assert [event["outcome"] for event in pulled.document["events"]] == ["ai_suggestion: 1 in doubt"]
    summary = shell.run("summary", "--json")
    assert (summary.code, [problem["code"] for problem in summary.document["problems"]]) == (10, ["error_report"])
    report = shell.run("report-usage", "--json")
    assert (report.code, [problem["code"] for problem in report.document["problems"]]) == (10, ["error_report"])
    assert shell.run("report-usage", "-q").code == 0


def test_it_takes_no_lock_of_a_reports(shell: Shell) -> None:
    shell.usage(1, quantity=3)
    shell.stripe.reject_later(customer="cus_1")
    shell.run("report-usage", "-q")
    shell.stripe.clock.advance(timedelta(seconds=30))
    with MeterLocks(shell.database_url, run_label="a report", host_clock=SystemHostClock()) as locks:
        assert locks.acquire("ai_suggestion", timeout_s=0, stopping=lambda: False)
        assert shell.run("report-usage").code == 75
        assert "1 in doubt" in shell.run("webhooks", "pull").stdout


def test_types_and_since_narrow_a_pull_and_leave_the_other_cursors_alone(shell: Shell) -> None:
    subscribed(shell)
    assert shell.run("webhooks", "pull", "--types", OWN_TYPES).stdout == "1 new events (0 known); 1 processed\n"
    assert sorted(shell.sql("SELECT type FROM meterctl.cursors")) == [(one,) for one in OWN_TYPES.split(",")]
    assert "1 new events (1 known)" in shell.run("webhooks", "pull", "--since", "2020-01-01").stdout
    assert len(shell.sql("SELECT FROM meterctl.cursors")) == 2


def test_types_that_nobody_handles_are_recorded(shell: Shell) -> None:
    shell.stripe.emit("customer.created", {"id": "cus_ada", "object": "customer"})
    done = shell.run("webhooks", "pull", "--types", "customer.created")
    assert (done.code, done.stdout) == (0, "1 new events (0 known); 1 ignored\n")
    assert "event_not_handled" in done.stderr


def test_without_a_key_what_is_stored_is_acted_on(shell: Shell) -> None:
    """As an application's endpoint stores it, that Stripe delivers to twice."""
    shell.extra["STRIPE_SECRET_KEY"] = ""
    subscribed(shell)
    for event in shell.stripe.snapshot_events():
        text = json.dumps(event.document())
        assert shell.sql("SELECT meterctl.store_stripe_event(%s, %s, 't=1,v1=2')", text, text.encode()) == [(True,)]
        assert shell.sql("SELECT meterctl.store_stripe_event(%s)", text) == [(False,)]
    done = shell.run("webhooks", "pull")
    assert (done.code, done.stdout) == (0, "0 new events (0 known); 2 processed\n")
    assert shell.sql("SELECT DISTINCT source, signature, raw IS NOT NULL FROM meterctl.stripe_events") == [
        ("endpoint", "t=1,v1=2", True)
    ]
    assert "stripe_not_configured" in done.stderr


def test_a_list_that_the_key_may_not_read_leaves_the_other(shell: Shell) -> None:
    subscribed(shell)
    shell.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, operation="core_events.list", times=None))
    done = shell.run("webhooks", "pull")
    assert (done.code, done.stdout) == (77, "2 new events (0 known); 2 processed\n")
    assert "v1.billing.meter.error_report_triggered" in done.stderr
    assert "403" in done.stderr


def test_stripe_away_is_69_and_what_is_stored_is_acted_on(shell: Shell) -> None:
    subscribed(shell)
    shell.stripe.add_fault(Fault(kind=FaultKind.RESET, operation="events.list", times=None))
    assert shell.run("webhooks", "pull").code == 69
    shell.stripe.clear_faults()
    assert "2 processed" in shell.run("webhooks", "pull").stdout


def test_a_gap_longer_than_stripe_lists_is_said_once(shell: Shell) -> None:
    shell.run("webhooks", "pull")
    shell.sql("UPDATE meterctl.cursors SET read_until = read_until - interval '40 days'")
    done = shell.run("webhooks", "pull")
    assert done.code == 10
    assert "30 days only" in done.stderr
    assert "reconcile" in done.stderr
    assert shell.run("webhooks", "pull").code == 0


def test_a_failing_event_is_named_and_the_next_pull_leaves_it_to_a_person(shell: Shell) -> None:
    subscribed(shell)
    bad = shell.stripe.emit("customer.subscription.updated", {"object": "subscription"})
    done = shell.run("webhooks", "pull")
    assert done.code == 10
    assert bad in done.stdout
    assert statuses(shell)[bad] == "failed"
    assert shell.run("webhooks", "pull").code == 0
    summary = shell.run("summary", "--json")
    assert [problem["code"] for problem in summary.document["problems"]] == ["webhook_failed"]
    shell.sql("UPDATE meterctl.stripe_events SET created = created - interval '36 days'")
    assert shell.run("summary").code == 0, "past mending"


def test_another_accounts_key_is_refused_before_anything_is_read(shell: Shell) -> None:
    shell.usage()
    shell.run("report-usage", "-q")
    shell.sql("UPDATE meterctl.identity SET account = 'acct_another'")
    subscribed(shell)
    done = shell.run("webhooks", "pull")
    assert (done.code, statuses(shell)) == (78, {})
    assert "acct_another" in done.stderr


@pytest.mark.parametrize("mode", ["live", "test"])
def test_the_other_modes_stored_events_are_ignored(shell: Shell, mode: str) -> None:
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "invoice.paid",
        "created": 1,
        "livemode": mode == "live",
        "data": {"object": {}},
    }
    shell.sql("SELECT meterctl.store_stripe_event(%s)", json.dumps(event))
    done = shell.run("webhooks", "pull", "--json")
    outcome = {"live": "of live mode", "test": "not handled"}[mode]
    assert [(one["status"], one["outcome"]) for one in done.document["events"]] == [("ignored", outcome)]


def test_a_subscriptions_table_that_does_not_fit_holds_up_its_events_and_nothing_else(shell: Shell) -> None:
    """Error reports are about money: they are acted on, and reports run."""
    shell.usage(quantity=3)
    shell.stripe.reject_later(customer="cus_1")
    assert shell.run("report-usage", "-q").code == 0
    shell.sql("ALTER TABLE subscriptions RENAME stripe_event_at TO told_at")
    subscribed(shell)
    shell.stripe.clock.advance(timedelta(seconds=30))
    done = shell.run("webhooks", "pull")
    assert done.code == 78
    assert "3 new events (0 known); 1 processed" in done.stdout
    assert 'no column "stripe_event_at"' in done.stderr
    assert shell.run("webhooks", "replay").code == 78
    assert shell.run("report-usage", "-q").code == 10
    shell.sql("ALTER TABLE subscriptions RENAME told_at TO stripe_event_at")
    assert shell.run("webhooks", "pull").stdout == "0 new events (3 known); 2 processed\n"


def test_the_applications_own_table_of_events(shell: Shell, tmp_path: Path) -> None:
    """`db adopt` gives it what it lacks; the endpoint's columns of its own are left alone."""
    shell.sql(
        "CREATE TABLE hooks (event_id text, type text, livemode boolean, created timestamptz, payload jsonb,"
        " seen_by text DEFAULT 'app')"
    )
    file = tmp_path / "config.toml"
    file.write_text('[webhooks]\nevents = "hooks"\n')
    shell.extra["METERCTL_CONFIG"] = str(file)
    subscribed(shell)
    lacking = shell.run("webhooks", "pull")
    assert (lacking.code, "meterctl db adopt" in lacking.stderr) == (78, True)
    assert shell.run("db", "adopt", "--yes").code == 0
    assert shell.run("webhooks", "pull").stdout == "2 new events (0 known); 2 processed\n"
    assert shell.sql("SELECT DISTINCT status, seen_by FROM hooks") == [("processed", "app")]
    assert shell.sql("SELECT FROM meterctl.stripe_events") == []
    assert shell.run("webhooks", "list", "--json").document["events"][0]["status"] == "processed"
