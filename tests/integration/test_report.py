"""The main path: usage rows become events, events reach Stripe, rows are stamped; and who pays for what."""

from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest

from meterctl.actions.collect import row_window
from meterctl.errors import ConfigurationError, ExitCode
from meterctl.postgres.connect import transaction
from world import World

DAY = timedelta(days=1)


def test_rows_are_billed_once_and_stamped(world: World) -> None:
    world.customer("ada")
    world.usage("ada", 3)
    world.usage("ada", Decimal(2))
    result = world.run()
    assert result.exit_code is ExitCode.OK
    assert (result.totals.reported, result.totals.units) == (2, Decimal(5))
    assert world.stripe_total() == 5
    assert world.rows("SELECT count(*) AS n FROM usage_events WHERE stripe_reported_at IS NULL")[0]["n"] == 0
    again = world.run()
    assert (again.totals.total, world.stripe_total()) == (0, Decimal(5))
    world.assert_exact()


def test_the_identifier_is_workspace_user_row(world: World) -> None:
    world.customer("ada")
    row_id = world.usage("ada")
    world.run()
    assert [event["identifier"] for event in world.events()] == [f"ws-ada-{row_id}"]


def test_an_organisation_pays_where_the_user_has_no_subscription(world: World) -> None:
    world.customer("ada")
    world.customer("acme", user_id=None, organization_id="ws")
    world.usage("ada", 1)
    world.usage("bob", 10)
    world.run()
    assert world.stripe.totals() == {
        ("ai_suggestion", "cus_ada"): Decimal(1),
        ("ai_suggestion", "cus_acme"): Decimal(10),
    }


def test_the_customer_is_the_one_of_the_instant_of_usage(world: World) -> None:
    now = world.time.now()
    world.customer("old", user_id="ada", started_at=now - 20 * DAY, ended_at=now - 10 * DAY, status="canceled")
    world.customer("new", user_id="ada", started_at=now - 10 * DAY)
    world.usage("ada", 1, ago=15 * DAY)
    world.usage("ada", 2, ago=5 * DAY)
    world.usage("ada", 4, ago=25 * DAY)
    result = world.run()
    assert world.stripe.totals() == {("ai_suggestion", "cus_old"): 1, ("ai_suggestion", "cus_new"): 2}
    assert result.totals.skipped == 1


def test_free_users_are_skipped_in_silence_and_looked_at_again(world: World) -> None:
    world.usage("free")
    first = world.run()
    assert (first.exit_code, first.totals.skipped, world.events()) == (ExitCode.OK, 1, [])
    world.customer("free")
    assert world.run().totals.reported == 1


def test_two_subscriptions_equally_new_are_ambiguous(world: World) -> None:
    start = world.time.now() - DAY
    world.customer("one", user_id="ada", started_at=start)
    world.customer("two", user_id="ada", started_at=start)
    world.usage("ada")
    result = world.run()
    assert result.exit_code is ExitCode.PROBLEMS
    assert [event["error_code"] for event in world.events()] == ["local:ambiguous_customer"]


def test_a_bad_row_is_rejected_alone_and_named(world: World) -> None:
    world.customer("ada")
    world.customer("nameless", stripe_customer_id=None)
    bad = [world.usage("ada", q) for q in ("NaN", "Infinity", None, "-1", "0.5", "1234567890123456")]
    bad.append(world.usage("nameless"))
    good = world.usage("ada", 7)
    result = world.run()
    assert (result.totals.reported, result.totals.rejected) == (1, len(bad))
    assert world.stripe_total() == 7
    codes = {event["source_row_id"]: event["error_code"] for event in world.events()}
    assert [codes[str(row)] for row in bad] == [
        "local:value_not_a_number",
        "local:value_infinite",
        "local:value_missing",
        "local:value_negative",
        "local:value_fractional",
        "local:value_too_many_digits",
        "local:no_customer_id",
    ]
    assert codes[str(good)] is None
    assert f"row {bad[0]} of usage_events has the quantity NaN" in {e["error_message"] for e in world.events()}
    assert world.run().exit_code is ExitCode.OK, "known problems are no news"


def test_a_row_older_than_35_days_is_named_as_expired_once(world: World) -> None:
    world.customer("ada")
    world.usage("ada", ago=36 * DAY)
    world.usage("ada", ago=71 * DAY)
    first = world.run()
    assert (first.exit_code, first.totals.expired, world.states()) == (ExitCode.PROBLEMS, 1, ["expired"])
    assert world.run().totals.total == 0


def test_usage_of_the_future_waits(world: World) -> None:
    world.customer("ada")
    world.usage("ada", ago=-DAY)
    assert world.run().totals.total == 0
    world.time.advance(2 * DAY)
    assert world.run().totals.reported == 1


def test_an_event_accepted_after_the_grace_is_late(world: World) -> None:
    now = world.time.now()
    world.customer("ada", current_period_start=now - 30 * DAY, current_period_end=now - timedelta(hours=2))
    world.usage("ada", 5, ago=3 * DAY)
    result = world.run()
    assert (result.totals.late, result.totals.late_units, result.exit_code) == (1, 5, ExitCode.PROBLEMS)


def test_usage_before_the_period_start_is_measured_against_it(world: World) -> None:
    now = world.time.now()
    world.customer("ada", current_period_start=now - timedelta(minutes=30), current_period_end=now + 30 * DAY)
    world.usage("ada", ago=timedelta(hours=1))
    result = world.run()
    assert (result.totals.late, world.events()[0]["period_end"]) == (0, now - timedelta(minutes=30))


def test_what_is_sent_later_is_what_was_stored(world: World) -> None:
    """Payload, value and customer are frozen at collection, whatever the application changes meanwhile."""
    world.customer("ada")
    row = world.usage("ada", 3)
    world.stripe.stop_listening()
    world.run()
    world.connection.execute("UPDATE usage_events SET quantity = 99 WHERE id = %s", [row])
    world.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_other'")
    world.stripe.start_listening()
    world.run()
    assert world.stripe.totals() == {("ai_suggestion", "cus_ada"): 3}


def test_two_uuids_and_a_uuid_id_make_a_stable_distinct_identifier(world: World) -> None:
    world.connection.execute("ALTER TABLE usage_events ALTER id DROP IDENTITY")
    world.connection.execute("ALTER TABLE usage_events ALTER id TYPE uuid USING NULL")
    a, b = "0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"
    world.customer("x", user_id=b)
    for row_id in ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b811-9dad-11d1-80b4-00c04fd430c8"):
        world.insert(
            "usage_events",
            {"id": row_id, "workspace_id": a, "user_id": b, "created_at": world.time.now() - DAY},
        )
    assert world.run().totals.reported == 2
    identifiers = [event["identifier"] for event in world.events()]
    assert len(set(identifiers)) == 2
    assert {len(identifier) for identifier in identifiers} == {95}
    assert all(identifier.startswith(a[:30]) for identifier in identifiers)


def test_a_limit_leaves_the_rest_and_is_no_failure(world: World) -> None:
    world.customer("ada")
    world.usage("free")
    for _ in range(5):
        world.usage("ada")
    first = world.run(limit=2)
    assert (first.exit_code, first.totals.reported, first.totals.remaining) == (ExitCode.OK, 2, 3)
    assert world.run().totals.reported == 3
    world.assert_exact()


def test_one_row_only(world: World) -> None:
    world.customer("ada")
    world.usage("ada", 1)
    wanted = world.usage("ada", 10)
    result = world.run(row_ids=(str(wanted),))
    assert (result.exit_code, result.totals.reported, world.stripe_total()) == (ExitCode.OK, 1, 10)


def test_recent_looks_no_further_back(world: World) -> None:
    world.customer("ada")
    world.usage("ada", 1, ago=3 * DAY)
    world.usage("ada", 10, ago=1 * DAY)
    assert world.run(recent=2 * DAY).totals.reported == 1
    assert world.stripe_total() == 10


def test_a_dry_run_foresees_exactly_what_collecting_does(world: World) -> None:
    """Both read the same SELECT; whatever kind of row there is, their figures agree."""
    world.customer("ada")
    world.customer("nameless", stripe_customer_id=None)
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    for quantity in (1, 2, "NaN", "0.5", None):
        world.usage("ada", quantity)
    world.usage("ada", 1, ago=40 * DAY)
    world.usage("ada", 1, created_at=None)
    world.usage("nameless")
    world.usage("free")
    source, now = world.rows_source(), world.time.now()
    foreseen = {
        (kind.outcome, kind.code): (kind.event_count, kind.units)
        for kind in source.preview(row_window(now, recent=None), doubt_horizon=now - DAY)
    }
    assert world.events() == [], "a dry run writes nothing"
    world.stripe.stop_listening()
    result = world.run()
    collected = {
        (event["state"], event["error_code"] if event["state"] == "rejected" else None): 0 for event in world.events()
    }
    for event in world.events():
        collected[event["state"], event["error_code"] if event["state"] == "rejected" else None] += 1
    collected["skipped", None] = result.totals.skipped
    assert {key: count for key, (count, _) in foreseen.items()} == collected
    assert foreseen["pending", None] == (2, Decimal(3))


def test_a_row_without_a_time_is_named(world: World) -> None:
    world.customer("ada")
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    row = world.usage("ada", 1, created_at=None)
    world.usage("ada", 2)
    result = world.run()
    assert (result.totals.reported, result.totals.rejected) == (1, 1)
    assert result.totals.problems["local:no_occurred_at"].sample_ids == [str(row)]


def test_pages_leave_no_row_out(world: World) -> None:
    """Equal instants, more of them than fit a page; free rows at the head; one row without a time."""
    world.customer("ada")
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    instant = world.time.now() - DAY
    for _ in range(7):
        world.usage("free", created_at=instant - DAY)
    for _ in range(11):
        world.usage("ada", created_at=instant)
    world.usage("ada", created_at=None)
    result = world.run(batch_size=3)
    assert (result.totals.reported, result.totals.skipped, result.totals.rejected) == (11, 7, 1)
    world.assert_exact()


def test_a_dry_run_is_read_only_for_postgresql_itself(world: World) -> None:
    with (
        psycopg.connect(world.database_url, autocommit=True) as connection,
        pytest.raises(ConfigurationError, match="read-only transaction"),
        transaction(connection, read_only=True),
    ):
        connection.execute("DELETE FROM usage_events")
