"""Finding events, and what a retry does at the edges: two writers at once, a row that changed, chains, many events."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from meterctl.errors import UnavailableError
from meterctl.postgres.ledger_admin import Retried, judge, retry, waive
from meterctl.postgres.ledger_events import ID_MAX, Selection, chains, select, select_groups, unknown_ids
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import RowsMeter
from world import World

DAY = timedelta(days=1)


@contextmanager
def opened(world: World) -> Iterator[tuple[psycopg.Connection, PostgresRows]]:
    """A connection, and the meter's rows as the commands read them."""
    settings = world.settings()
    meter = settings.meters["ai_suggestion"]
    assert isinstance(meter, RowsMeter)
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        nobody = LedgerOwner(account="", livemode=False)
        yield connection, PostgresRows(connection, "ai_suggestion", meter, settings.lookups, nobody)


def retried(world: World, *event_ids: int) -> Retried:
    with opened(world) as (connection, source):
        return retry(connection, event_ids, source, "ai_suggestion", "mended", world.time.now())


def rejected(world: World, *quantities: object) -> list[int]:
    """Events of a customer Stripe does not know."""
    world.customer("ghost", known=False)
    for quantity in quantities or (4,):
        world.usage("ghost", quantity)
    world.run()
    assert set(world.states()) == {"rejected"}
    return [event["id"] for event in world.events()]


def test_judging_says_what_a_retry_does_and_writes_nothing(world: World) -> None:
    good, broken = rejected(world, 4, "NaN")
    before = world.events()
    with opened(world) as (connection, source):
        verdict = judge(connection, [good, broken, 999], source, world.time.now())
    assert world.events() == before
    assert verdict == retried(world, good, broken, 999)
    assert verdict.done_ids == (good,)
    assert verdict.refused[999] == "it is no longer rejected as it was"


def test_a_local_rejection_with_another_cause_by_now_says_the_new_one(world: World) -> None:
    world.customer("ada")
    row = world.usage("ada", "NaN")
    world.run()
    world.connection.execute("UPDATE usage_events SET quantity = -1 WHERE id = %s", [row])
    (event,) = world.events()
    assert "local:value_negative" in retried(world, event["id"]).refused[event["id"]]
    (event,) = world.events()
    assert (event["state"], event["error_code"]) == ("rejected", "local:value_negative")
    assert "negative" in event["error_message"]


def test_a_row_that_was_given_its_instant_afterwards_is_found(world: World) -> None:
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    world.customer("ada")
    world.usage("ada", 3, created_at=None)
    world.run()
    (event,) = world.events()
    assert event["error_code"] == "local:no_occurred_at"
    assert retried(world, event["id"]).done_ids == ()
    world.connection.execute("UPDATE usage_events SET created_at = %s", [world.time.now() - DAY])
    assert retried(world, event["id"]).done_ids == (event["id"],)
    world.run()
    assert world.stripe_total() == 3
    world.assert_exact()


def test_a_local_rejection_whose_row_was_corrected_to_another_instant_is_mended(world: World) -> None:
    world.customer("ada")
    world.usage("ada", "NaN")
    world.run()
    world.connection.execute("UPDATE usage_events SET quantity = 5, created_at = %s", [world.time.now() - 9 * DAY])
    (event,) = world.events()
    assert retried(world, event["id"]).done_ids == (event["id"],)
    assert world.events()[0]["occurred_at"] == world.time.now() - 9 * DAY


def test_another_row_under_a_used_id_is_not_billed_as_the_rejected_one(world: World) -> None:
    (event,) = rejected(world)
    world.connection.execute("UPDATE usage_events SET created_at = %s", [world.time.now() - 9 * DAY])
    assert "another instant" in retried(world, event).refused[event]
    assert world.states() == ["rejected"]


def test_a_stamped_row_is_not_billed_again(world: World) -> None:
    (event,) = rejected(world)
    world.connection.execute("UPDATE usage_events SET stripe_reported_at = now()")
    assert "stamped" in retried(world, event).refused[event]


def test_many_events_are_reissued_and_mended_together(world: World) -> None:
    ids = rejected(world, 1, "NaN", 2, "Infinity", 4)
    world.connection.execute("UPDATE usage_events SET quantity = 8 WHERE quantity IN ('NaN', 'Infinity')")
    world.stripe.create_customer("cus_ghost")
    assert sorted(retried(world, *ids).done_ids) == ids
    assert world.run().totals.reported == 5
    assert world.stripe_total() == 1 + 8 + 2 + 8 + 4
    world.assert_exact()


def test_an_identifier_taken_at_the_same_moment_changes_nothing_and_says_run_again(world: World) -> None:
    (event,) = rejected(world)
    copied = (
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, source_row_id, state, collected_at, livemode, account)"
        " SELECT meter, event_name, identifier || '~2', customer, value, quantity, occurred_at, sent_timestamp,"
        " payload, 'other', 'pending', collected_at, livemode, account FROM meterctl.meter_events"
    )
    failures: list[Exception] = []

    def retry_meanwhile() -> None:
        try:
            retried(world, event)
        except UnavailableError as error:
            failures.append(error)

    thread = threading.Thread(target=retry_meanwhile)
    with psycopg.connect(world.database_url) as other:
        other.execute(copied)  # not committed yet, so the retry cannot see it
        thread.start()
        thread.join(timeout=0.7)
        assert thread.is_alive(), "the retry waits for the other writer"
    thread.join()
    assert len(failures) == 1
    assert sorted(world.states()) == ["pending", "rejected"]
    assert retried(world, event).done_ids == (event,)
    assert world.events()[-1]["identifier"].endswith("~3")


def test_a_batch_is_whole_or_not_at_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between closing the old events and issuing the new ones: nothing has happened."""
    ids = rejected(world, 1, 2)
    monkeypatch.setattr("meterctl.postgres.ledger_admin._recode", _failing)
    with pytest.raises(RuntimeError):
        retried(world, *ids)
    assert world.states() == ["rejected", "rejected"]


def _failing(*_: object) -> None:
    raise RuntimeError("killed")


def chain_of_three(world: World) -> list[dict[str, Any]]:
    rejected(world)
    for _ in range(2):
        retried(world, world.events()[-1]["id"])
        world.run()
    return world.events()


def test_a_chain_is_told_from_any_of_its_events(world: World) -> None:
    events = chain_of_three(world)
    ids = [event["id"] for event in events]
    assert [event["state"] for event in events] == ["replaced", "replaced", "rejected"]
    with opened(world) as (connection, _):
        found = chains(connection, ids)
        shown = select(connection, Selection(ids=(ids[1],)), None)
    assert {asked: [link["id"] for link in links] for asked, links in found.items()} == dict.fromkeys(ids, ids)
    assert (shown[0]["replaces"], shown[0]["replaced_by"]) == (ids[0], ids[2])


def test_events_are_found_by_whatever_is_known_of_them(world: World) -> None:
    world.customer("ada")
    world.customer("bob", known=False)
    now = world.time.now()
    ada = world.usage("ada", created_at=now - 2 * DAY)
    bob = world.usage("bob", created_at=now - DAY)
    world.run()
    by_row = {event["source_row_id"]: event for event in world.events()}

    def found(**asked: Any) -> list[str]:
        with opened(world) as (connection, _):
            return [event["source_row_id"] for event in select(connection, Selection(**asked), None)]

    assert found() == [str(bob), str(ada)], "newest first"
    assert found(states=("accepted",)) == [str(ada)]
    assert found(states=("rejected", "accepted")) == [str(bob), str(ada)]
    assert found(code="resource_missing") == [str(bob)]
    assert found(customer="cus_ada") == [str(ada)]
    assert found(row_ids=(str(bob), "nothing")) == [str(bob)]
    assert found(meter="ai_suggestion") == [str(bob), str(ada)]
    assert found(meter="other") == []
    assert found(identifiers=(by_row[str(ada)]["identifier"],)) == [str(ada)]
    assert found(since=now - 2 * DAY, until=now - DAY) == [str(ada)], "half-open: since is in, until is not"


def test_groups_say_how_much_would_be_changed_without_loading_it(world: World) -> None:
    ids = rejected(world, 1, 2, "NaN")
    with opened(world) as (connection, _):
        first, second = select_groups(connection, Selection(states=("rejected",)))
        assert unknown_ids(connection, [*ids, 999, ID_MAX + 1, 10**30]) == [999, ID_MAX + 1, 10**30]
        assert select_groups(connection, Selection(code="nothing")) == []
    assert (first.code, first.units, list(first.ids), first.customer_count) == ("resource_missing", 3, ids[:2], 1)
    assert (second.code, second.units, list(second.ids)) == ("local:value_not_a_number", 0, ids[2:])


def test_an_event_waived_meanwhile_is_not_retried(world: World) -> None:
    (event,) = rejected(world)
    world.connection.execute("UPDATE meterctl.meter_events SET state = 'waived', closed_reason = 'noted'")
    assert retried(world, event) == Retried(done_ids=(), refused={event: "it is no longer rejected as it was"})


def test_an_event_rejected_for_another_reason_than_the_one_shown_is_left_alone(world: World) -> None:
    """While somebody thinks about a list, a local rejection in it may be mended, sent, and found to be taken."""
    (event,) = rejected(world)
    world.connection.execute("UPDATE meterctl.meter_events SET error_code = 'identifier_taken'")
    with opened(world) as (connection, source):
        now = world.time.now()
        result = retry(connection, [event], source, "ai_suggestion", "r", now, code="resource_missing")
        assert result.refused == {event: "it is no longer rejected as it was"}
        assert waive(connection, [event], "r", code="resource_missing") == []
    assert world.states() == ["rejected"]
