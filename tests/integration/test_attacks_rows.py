"""What a row, an id or a name can do: nothing is billed twice or lost in silence, and one row holds up nobody else."""

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from meterctl.actions.collect import row_window
from meterctl.errors import ConfigurationError, ExitCode, MeterctlError
from meterctl.ports import PageKey
from meterctl.postgres.check import require_fit
from meterctl.postgres.connect import connect
from several_meters import HOUR, configured, meter, run, stamped_units
from world import World


def test_two_rows_of_one_id_are_never_both_stamped_for_one_event(world: World) -> None:
    """Partitioned tables are unique by (id, time) at most: an id may come twice."""
    world.connection.execute(
        "ALTER TABLE usage_events ALTER id DROP IDENTITY; ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey"
    )
    world.customer("ada")
    world.customer("bob")
    world.usage("ada", 3, id=7, ago=2 * HOUR)
    world.usage("bob", 5, id=7, ago=HOUR)
    results = [world.run(), world.run()]
    assert stamped_units(world) == world.stripe_total(), "a stamped row is a billed row"
    assert ExitCode.PROBLEMS in [result.exit_code for result in results], "the other is named"


def test_a_new_row_under_a_used_id_is_not_stamped_for_the_old_event(world: World) -> None:
    """The table is emptied while events wait for Stripe, and counts from 1 again."""
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    world.run()
    world.connection.execute("TRUNCATE usage_events RESTART IDENTITY")
    world.usage("ada", 9, ago=timedelta(minutes=5))
    world.stripe.start_listening()
    world.run()
    assert world.stripe_total() == 3
    assert stamped_units(world) == 0, "the new row's 9 units were not billed"


def test_events_of_a_former_table_stamp_nothing_in_the_new_one(world: World, tmp_path: Path) -> None:
    """The meter moves to another table under another key while events of the old one are due."""
    world.connection.execute("CREATE TABLE usage_v2 (LIKE usage_events INCLUDING ALL)")
    world.customer("ada")
    row_id = world.usage("ada", 3)
    old = configured(world, tmp_path, meter("old", event_name="ai_suggestion"))
    world.stripe.stop_listening()
    run(world, old)
    world.stripe.start_listening()
    new = configured(world, tmp_path, meter("new", event_name="ai_suggestion", table="usage_v2", identifier="v2-{id}"))
    world.connection.execute(
        "INSERT INTO usage_v2 (id, workspace_id, user_id, quantity, created_at) OVERRIDING SYSTEM VALUE"
        " VALUES (%s, 'ws', 'ada', 9, %s)",
        [row_id, world.time.now() - HOUR],
    )
    with suppress(MeterctlError):
        run(world, new, limit=1)
        run(world, new)
    stamped = world.rows("SELECT coalesce(sum(quantity), 0) AS n FROM usage_v2 WHERE stripe_reported_at IS NOT NULL")
    assert stamped[0]["n"] in {0, world.stripe_total() - 3}


def test_a_renamed_key_bills_no_row_twice(world: World, tmp_path: Path) -> None:
    """The same table and event_name under another key, with another template: rows with open events are known."""
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    run(world, configured(world, tmp_path, meter("old", event_name="ai_suggestion", identifier="{user_id}-{id}")))
    world.stripe.start_listening()
    with suppress(ConfigurationError):
        run(world, configured(world, tmp_path, meter("ai_suggestion")))
    assert world.stripe_total() <= 3


def test_one_table_under_two_names_shares_no_stamp_in_silence(world: World, tmp_path: Path) -> None:
    """`usage_events` and `public.usage_events` are one table: a row stamped for one meter is lost to the other."""
    world.stripe.create_meter(event_name="second")
    world.customer("ada")
    world.usage("ada", 3)
    first = meter("ai_suggestion", identifier="first-{id}")
    second = meter("second", identifier="second-{id}", table="public.usage_events")
    with suppress(ConfigurationError):
        settings = configured(world, tmp_path, first, second)
        with connect(world.database_url) as connection:
            require_fit(connection, settings)
        run(world, settings)
        assert world.stripe_total() == 6, "both meters bill the row, or the configuration is refused"


def test_a_bad_row_with_a_used_identifier_is_named(world: World, tmp_path: Path) -> None:
    world.customer("ada")
    settings = configured(world, tmp_path, meter("ai_suggestion", identifier="{workspace_id}-{user_id}"))
    world.usage("ada", 3, ago=2 * HOUR)
    bad = world.usage("ada", "NaN")
    result = run(world, settings)
    assert result.totals.rejected == 1, "neither billed nor named: it left in silence"
    assert [e["source_row_id"] for e in world.events() if e["state"] == "rejected"] == [str(bad)]


def test_a_customer_id_too_long_for_an_index_holds_up_nobody(world: World) -> None:
    """Something else was written into the column: random, so that it does not compress."""
    world.customer("ada")
    world.connection.execute(
        "INSERT INTO subscriptions (user_id, stripe_customer_id)"
        " SELECT 'bad', string_agg(md5(n::text), '') FROM generate_series(1, 400) AS n"
    )
    world.usage("bad", 1)
    world.usage("ada", 3)
    result = world.run()
    assert (result.totals.reported, result.totals.rejected) == (1, 1)


def test_a_row_that_was_given_its_time_is_no_reused_id(world: World) -> None:
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    world.customer("ada")
    row_id = world.usage("ada", 3, created_at=None)
    assert "local:no_occurred_at" in world.run().totals.problems
    world.connection.execute("UPDATE usage_events SET created_at = %s WHERE id = %s", [world.time.now() - HOUR, row_id])
    assert "row_reused" not in world.run().totals.problems


def test_an_empty_id_does_not_make_the_pages_go_round(world: World) -> None:
    world.connection.execute(
        "ALTER TABLE usage_events ALTER id DROP IDENTITY; ALTER TABLE usage_events ALTER id TYPE text;"
        "ALTER TABLE usage_events ALTER created_at DROP NOT NULL"
    )
    world.customer("ada")
    for row_id in ("", "x"):
        world.insert(
            "usage_events", {"id": row_id, "workspace_id": "ws", "user_id": "ada", "quantity": 1, "created_at": None}
        )
    source, key, keys = world.rows_source(), None, list[PageKey]()
    while len(keys) < 10:
        page = source.collect(row_window(world.time.now(), recent=None), key, batch_size=1, now=world.time.now())
        key = page.next_key
        if key is None:
            break
        keys.append(key)
    assert len(keys) < 10


@pytest.mark.parametrize("kind", ["double precision", "real", "numeric", "bigint"])
def test_no_number_breaks_a_page(world: World, kind: str) -> None:
    world.customer("ada")
    world.connection.execute(f"ALTER TABLE usage_events ALTER quantity DROP DEFAULT, ALTER quantity TYPE {kind}")
    odd = {
        "double precision": ["NaN", "-Infinity", "1e308", "5e-324", "-0"],
        "real": ["NaN", "3e38", "1e-45"],
        "numeric": ["1e100000", "1e-16000", "-1e100000", "NaN"],
        "bigint": ["9223372036854775807", "-9223372036854775808"],
    }[kind]
    for value in odd:
        world.connection.execute(
            "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at) VALUES ('ws', 'ada', %s, %s)",
            [value, world.time.now() - HOUR],
        )
    world.usage("ada", 3)
    result = world.run()
    assert result.totals.reported + result.totals.rejected == len(odd) + 1
    assert world.stripe_total() == 3
    world.run()


def test_a_row_whose_stamp_is_refused_leaves_the_others_their_stamps(world: World) -> None:
    """A trigger of the application refuses one row: were the others unstamped too, each night would read them again."""
    world.customer("ada")
    poison = world.usage("ada")
    for _ in range(5):
        world.usage("ada")
    world.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not this one'; END$$;"
        f"CREATE TRIGGER refuse BEFORE UPDATE ON usage_events FOR EACH ROW WHEN (OLD.id = {poison})"
        " EXECUTE FUNCTION refuse()"
    )
    with psycopg.connect(world.database_url) as other:  # so that all stamps wait for the next night
        other.execute("SELECT FROM usage_events FOR UPDATE")
        world.run()
    world.run()
    unstamped = world.rows("SELECT id FROM usage_events WHERE stripe_reported_at IS NULL")
    assert [row["id"] for row in unstamped] == [poison]
