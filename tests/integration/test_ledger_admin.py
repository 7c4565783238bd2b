"""The ledger by hand: a rejection has a way out, once, and nothing is sent under an identifier that was used."""

import threading
from datetime import timedelta

import psycopg
import pytest

from meterctl.errors import ExitCode
from meterctl.postgres.ledger_admin import Retried, retry, waive
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import RowsMeter
from world import World

DAY = timedelta(days=1)


def retried(world: World, *event_ids: int) -> Retried:
    settings = world.settings()
    meter = settings.meters["ai_suggestion"]
    assert isinstance(meter, RowsMeter)
    nobody = LedgerOwner(account="", livemode=False)
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        source = PostgresRows(connection, "ai_suggestion", meter, settings.lookups, nobody)
        return retry(connection, event_ids, source, meter.event_name, "customer came good", world.time.now())


def rejected_event(world: World) -> int:
    world.customer("ghost", known=False)
    world.usage("ghost", 4)
    world.run()
    event = world.events()[0]
    assert event["state"] == "rejected"
    return int(event["id"])


def test_a_rejected_event_is_issued_again_when_its_customer_came_good(world: World) -> None:
    event = rejected_event(world)
    world.stripe.create_customer("cus_ghost")
    assert retried(world, event).done_ids == (event,)
    old, new = world.events()
    assert (old["state"], old["closed_reason"]) == ("replaced", "customer came good")
    assert (new["state"], new["replaces"], new["identifier"]) == ("pending", event, old["identifier"] + "~2")
    assert world.run().totals.reported == 1
    assert world.stripe_total() == 4
    world.assert_exact()


def test_the_customer_is_looked_up_anew(world: World) -> None:
    event = rejected_event(world)
    world.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_right'")
    world.stripe.create_customer("cus_right")
    retried(world, event)
    world.run()
    assert world.stripe.totals() == {("ai_suggestion", "cus_right"): 4}


def test_a_second_rejection_counts_the_identifier_on(world: World) -> None:
    event = rejected_event(world)
    retried(world, event)
    world.run()
    second = world.events()[1]
    assert second["state"] == "rejected"
    retried(world, second["id"])
    assert [e["identifier"][-2:] for e in world.events()[1:]] == ["~2", "~3"]


def test_a_derived_identifier_that_exists_is_passed_over(world: World) -> None:
    event = rejected_event(world)
    identifier = world.events()[0]["identifier"]
    world.connection.execute(
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, source_row_id, state, collected_at, livemode, account)"
        " SELECT meter, event_name, identifier || '~2', customer, value, quantity, occurred_at, sent_timestamp,"
        " payload, 'other', 'pending', collected_at, livemode, account FROM meterctl.meter_events"
    )
    retried(world, event)
    assert world.events()[-1]["identifier"] == f"{identifier}~3"


def test_a_local_rejection_is_mended_and_keeps_its_identifier(world: World) -> None:
    world.customer("ada")
    row = world.usage("ada", "NaN")
    world.run()
    event = world.events()[0]
    assert retried(world, event["id"]).refused[event["id"]].startswith("still local:value_not_a_number")
    world.connection.execute("UPDATE usage_events SET quantity = 7 WHERE id = %s", [row])
    assert retried(world, event["id"]).done_ids == (event["id"],)
    assert world.run().totals.reported == 1
    (mended,) = world.events()
    assert (mended["id"], mended["identifier"], mended["state"]) == (event["id"], event["identifier"], "accepted")
    assert world.stripe_total() == 7
    world.assert_exact()


def test_a_subscription_without_customer_is_mended_when_it_gets_one(world: World) -> None:
    world.customer("ada", stripe_customer_id=None)
    world.stripe.create_customer("cus_new")
    world.usage("ada", 2)
    assert world.run().exit_code is ExitCode.PROBLEMS
    world.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_new'")
    retried(world, world.events()[0]["id"])
    world.run()
    assert world.stripe.totals() == {("ai_suggestion", "cus_new"): 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM usage_events", "gone"),
        ("DELETE FROM subscriptions", "no subscription"),
        ("UPDATE subscriptions SET stripe_customer_id = NULL", "still local:no_customer_id"),
        ("UPDATE usage_events SET quantity = 'Infinity'", "still local:value_infinite"),
    ],
)
def test_what_cannot_be_billed_now_stays_rejected_and_says_why(world: World, change: str, reason: str) -> None:
    event = rejected_event(world)
    world.connection.execute(change)
    assert reason in retried(world, event).refused[event]
    assert world.states() == ["rejected"]


def test_what_is_over_35_days_old_is_not_retried(world: World) -> None:
    event = rejected_event(world)
    world.time.advance(36 * DAY)
    assert "35 days" in retried(world, event).refused[event]


def test_two_operators_at_once_make_one_replacement(world: World) -> None:
    event = rejected_event(world)
    results: list[Retried] = []
    threads = [threading.Thread(target=lambda: results.append(retried(world, event))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(result.done_ids) for result in results) == [0, 0, 0, 1]
    assert sorted(world.states()) == ["pending", "replaced"]


def test_a_retried_long_identifier_still_fits(world: World) -> None:
    world.customer("u" * 100, stripe_customer_id="cus_ghost", known=False)
    world.usage("u" * 100)
    world.run()
    retried(world, world.events()[0]["id"])
    assert [len(event["identifier"]) for event in world.events()] == [95, 97]


def test_waiving_closes_rejections_and_expiries_and_nothing_else(world: World) -> None:
    event = rejected_event(world)
    world.customer("ada")
    world.usage("ada", 1)
    world.usage("ada", 1, ago=40 * DAY)
    world.run()
    ids = [e["id"] for e in world.events()]
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        assert len(waive(connection, ids, "noted")) == 2
    assert sorted(world.states()) == ["accepted", "waived", "waived"]
    assert {e["closed_reason"] for e in world.events() if e["state"] == "waived"} == {"noted"}
    assert world.run().totals.total == 0, "a waived row is never collected again"
    assert event in ids
