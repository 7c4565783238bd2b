"""`kill -9` of `webhooks pull` and `webhooks replay`: done again, each event has had one effect, and all of it."""

import json
import random
import time
from datetime import timedelta
from pathlib import Path

import pytest

from cli.conftest import Shell
from cli.held_up import Write, killed_as_it_writes

STEPS: dict[str, Write] = {
    "stores": ("meterctl.stripe_events", "INSERT", "true"),
    "remembers how far it read": ("meterctl.cursors", "INSERT", "true"),
    "writes the subscription": ("subscriptions", "INSERT", "true"),
    "keeps its facts": ("meterctl.subscription_facts", "UPDATE", "true"),
    "takes off the stamp": ("usage_events", "UPDATE", "NEW.stripe_reported_at IS NULL"),
    "puts in doubt": ("meterctl.meter_events", "UPDATE", "NEW.state = 'in_doubt'"),
    "notes the report": ("meterctl.error_samples", "INSERT", "true"),
    "marks": ("meterctl.stripe_events", "UPDATE", "NEW.status = 'processed'"),
}
"""Step → the write that it is."""

CHANCE = random.Random(6)  # noqa: S311 -- repeatable, nothing secret
INSTANTS_S = [round(CHANCE.uniform(0.3, 1.2), 3) for _ in range(5)]


@pytest.fixture
def told(shell: Shell) -> Shell:
    """Usage that was billed, of which Stripe rejects an event later; and a subscription by checkout."""
    shell.usage(2, customers=2, quantity=3)
    shell.stripe.reject_later(customer="cus_1")
    assert shell.run("report-usage", "-q").code == 0
    shell.stripe.clock.advance(timedelta(seconds=30))
    subscription = shell.stripe.create_subscription("cus_ada")
    shell.stripe.complete_checkout(subscription, client_reference_id="ada")
    shell.stripe.update_subscription(subscription, status="past_due")
    return shell


def assert_all_is_done_once(shell: Shell) -> None:
    """What a pull that nobody killed comes to."""
    statuses = shell.sql("SELECT type, status, attempt_count FROM meterctl.stripe_events ORDER BY 1")
    assert statuses == [
        ("checkout.session.completed", "processed", 1),
        ("customer.subscription.created", "processed", 1),
        ("customer.subscription.updated", "processed", 1),
        ("v1.billing.meter.error_report_triggered", "processed", 1),
    ]
    states = "SELECT customer, state FROM meterctl.meter_events ORDER BY 1"
    assert shell.sql(states) == [("cus_1", "in_doubt"), ("cus_2", "accepted")]
    assert shell.sql("SELECT verdict FROM meterctl.error_samples") == [(None,)]
    assert shell.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL") == [(1,)]
    assert shell.sql("SELECT status FROM subscriptions WHERE user_id = 'ada'") == [("past_due",)]


IN_THE_ORDINARY_SUITE = {"stores", "remembers how far it read", "writes the subscription", "puts in doubt", "marks"}


@pytest.mark.parametrize(
    "step", [pytest.param(one, marks=[] if one in IN_THE_ORDINARY_SUITE else pytest.mark.long) for one in STEPS]
)
def test_a_pull_killed_as_it(told: Shell, step: str) -> None:
    killed_as_it_writes(told, STEPS[step], "webhooks", "pull")
    done = told.run("webhooks", "pull")
    assert done.code == 0, done.stderr
    assert_all_is_done_once(told)


def test_a_pull_killed_at_any_instant(told: Shell) -> None:
    for instant_s in INSTANTS_S:
        child = told.start("webhooks", "pull")
        time.sleep(instant_s)
        child.kill()
        child.communicate()
    done = told.run("webhooks", "pull")
    assert done.code == 0, done.stderr
    assert_all_is_done_once(told)


@pytest.mark.parametrize(
    "step", ["stores", *(pytest.param(one, marks=pytest.mark.long) for one in ("puts in doubt", "marks"))]
)
def test_a_replay_of_a_file_killed_as_it(told: Shell, tmp_path: Path, step: str) -> None:
    snapshots = [event.document() for event in told.stripe.snapshot_events()]
    reports = [event.document(with_data=True) for event in told.stripe.thin_events()]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(json.dumps(document) for document in [*reports, *snapshots]))
    killed_as_it_writes(told, STEPS[step], "webhooks", "replay", "--file", str(file))
    done = told.run("webhooks", "replay", "--file", str(file))
    assert done.code == 0, done.stderr
    assert_all_is_done_once(told)


def test_two_pulls_at_once_have_one_effect(told: Shell) -> None:
    children = [told.start("webhooks", "pull", "--json") for _ in range(3)]
    documents = [json.loads(child.communicate()[0]) for child in children]
    assert [document["exit_code"] for document in documents] == [0, 0, 0]
    assert sum(document["processed"] for document in documents) == 4
    assert_all_is_done_once(told)
