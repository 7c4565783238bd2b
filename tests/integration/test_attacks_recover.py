"""Recoveries that might leave a row silently unbilled or bill it again; marks that might not tell; copies that send."""

from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from integration.test_recover import DAY, HOUR, nights, own_world, recover
from meterctl.cli.db_recover import adopt_ledger
from meterctl.errors import ConfigurationError
from meterctl.postgres import identity
from meterctl.postgres.identity import Marks, claim_ledger
from meterctl.postgres.usage_queries import LedgerOwner
from metered_devices import GAUGE, open_devices, organisation, record
from world import World

MINUTE = timedelta(minutes=1)


def lose_everything(world: World) -> None:
    """The database is set back to before the ledger's only run."""
    world.connection.execute("DELETE FROM meterctl.meter_events; UPDATE usage_events SET stripe_reported_at = NULL")


def adopt(world: World) -> int:
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        return adopt_ledger(connection, world.settings(), world.time)


def fail_once(world: World) -> None:
    """A recovery that has collected, and dies before it has doubted anything."""
    world.connection.execute(
        "CREATE FUNCTION dies() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'it dies'; END$$;"
        "CREATE TRIGGER dies BEFORE UPDATE ON meterctl.meter_events FOR EACH STATEMENT EXECUTE FUNCTION dies()"
    )
    with pytest.raises(psycopg.Error, match="it dies"):
        recover(world)
    world.connection.execute("DROP TRIGGER dies ON meterctl.meter_events")


@pytest.fixture
def old(world: World) -> World:
    """Usage that was reported an hour and a half before it was too old for Stripe; then the ledger forgets it."""
    world.customer("ada")
    world.usage("ada", 5, ago=35 * DAY - 90 * MINUTE)
    world.run()
    lose_everything(world)
    return world


# Rows at the edge of what Stripe takes: named `expired`, a person would bill them by hand, once more


@pytest.mark.parametrize("minutes", [20, 60, 120])
def test_a_lost_row_that_grows_too_old_meanwhile_is_found_in_stripe(old: World, minutes: int) -> None:
    """Also in its last hour, in which no run collects it."""
    old.time.advance(minutes * MINUTE)
    recover(old)
    nights(old, 4)
    assert old.states() == ["accepted"]
    old.assert_exact()


def test_so_it_is_when_the_first_recovery_died(old: World) -> None:
    old.time.advance(2 * HOUR)
    fail_once(old)
    old.time.advance(2 * HOUR)
    recover(old)
    nights(old, 4)
    assert old.states() == ["accepted"]


def test_a_row_that_was_never_sent_and_is_too_old_is_named(world: World) -> None:
    world.customer("ada")
    world.run()
    world.usage("ada", 5, ago=35 * DAY - 30 * MINUTE)
    recover(world)
    nights(world, 4)
    assert (world.states(), world.stripe_total()) == (["expired"], 0)


# Two losses


def test_a_backup_that_is_restored_twice_is_recovered_twice(world: World) -> None:
    """The second recovery's calls bear the Idempotency-Keys of the first one's; Stripe replays their answers."""
    world.customer("ada")
    world.usage("ada", 5, ago=HOUR)
    for resend in (True, True):
        world.run()
        lose_everything(world)
        recover(world, resend=resend)
    world.run()
    assert (world.states(), world.stripe_total()) == (["accepted"], 5)


# Copies


def test_a_copy_sends_nothing_that_its_original_will(world: World) -> None:
    """Not even usage that had no event when the copy was taken, shortly before the night."""
    world.customer("ada")
    world.run()
    world.usage("ada", 5)
    assert adopt(world) == 1
    world.run()
    assert (world.states(), world.stripe_total()) == (["waived"], 0)
    world.usage("ada", 7)
    world.run()
    assert world.stripe_total() == 7


def test_a_copy_sends_nothing_of_an_hour_that_has_not_ended(database_url: str) -> None:
    with open_devices(database_url) as world:
        world.config |= {f"meters.{GAUGE}.enabled": False}
        organisation(world, "acme")
        world.run()
        record(world, "acme", 5)
        assert adopt(world) == 1
        world.time.advance(2 * HOUR)
        world.run()
        assert (world.states(), world.stripe_total()) == (["waived"], 0)


def test_an_adoption_that_died_is_done_again(world: World) -> None:
    world.customer("ada")
    world.run()
    world.usage("ada", 5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("meterctl.cli.db_recover.adopt_copy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adopt(world)
    assert (adopt(world), world.states()) == (1, ["waived"])


# Marks


OWNER = LedgerOwner(account="acct_1", livemode=False)


def claimed(world: World, monkeypatch: pytest.MonkeyPatch, **marks: str | None) -> dict[str, object]:
    """The ledger's marks after a run that reads these."""
    monkeypatch.setattr(identity, "read_marks", lambda _: Marks(**marks))  # as another server, or another role, gives
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        claim_ledger(connection, OWNER, world.time.now())
    return world.rows("SELECT system_identifier, timeline, database_oid FROM meterctl.identity")[0]


def test_a_mark_that_could_not_be_read_is_taken_once_it_can(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role without the rights claimed the ledger, or recovered it; from now on a copy is told."""
    few = {"system_identifier": None, "timeline": None, "database_oid": "5"}
    every = {"system_identifier": "7", "timeline": "00000001", "database_oid": "5"}
    assert claimed(world, monkeypatch, **few) == few
    assert claimed(world, monkeypatch, **every) == every
    assert claimed(world, monkeypatch, **few) == every, "a role without the rights takes none away"
    with pytest.raises(ConfigurationError, match="its timeline was 00000001 and is 00000002"):
        claimed(world, monkeypatch, **every | {"timeline": "00000002"})


def test_no_mark_is_taken_from_a_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"system_identifier": None, "timeline": None, "database_oid": "5"}
    claimed(world, monkeypatch, **few)
    with pytest.raises(ConfigurationError, match="its database oid was 5 and is 6"):
        claimed(world, monkeypatch, system_identifier="8", timeline="00000001", database_oid="6")
    assert world.rows("SELECT system_identifier FROM meterctl.identity") == [{"system_identifier": None}]


@pytest.mark.long
def test_a_base_backup_that_is_merely_started_bears_every_mark(short_tmp: Path) -> None:
    """As documented: without recovery.signal there is no new timeline. It is recovered by hand."""
    with own_world(short_tmp / "kept") as keeper:
        world = keeper.world
        world.customer("ada")
        world.run()
        world.usage("ada", 5)
        keeper.back_up()
        (keeper.kept / "recovery.signal").unlink()
        world.run()
        keeper.set_back()
        world.time.advance(2 * DAY)
        recover(world)
        nights(world, 4)
        assert (world.states(), world.stripe_total()) == (["accepted"], 5)
