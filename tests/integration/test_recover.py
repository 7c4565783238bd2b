"""A database that is set back: by a base backup, by a volume, in a copy. The nights after it are exact all the same."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from meterctl.cli.db_recover import recover_ledger
from meterctl.errors import ConfigurationError, ExitCode
from meterctl.sandbox.local_stripe import Fault, FaultKind
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import make_template
from world import World, open_world

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

BACKUP_NAMED_ANEW_SINCE = 150000


@dataclass(kw_only=True)
class Keeper:
    """Keeps a server's data as it was at an instant, and sets it back to that."""

    server: EmbeddedPostgres
    world: World
    kept: Path

    def back_up(self) -> None:
        """Take a base backup while the server runs, as `pg_basebackup` does."""
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            named_anew = connection.info.server_version >= BACKUP_NAMED_ANEW_SINCE
            start = "pg_backup_start('night', true)" if named_anew else "pg_start_backup('night', true, false)"
            connection.execute(f"SELECT {start}")
            self._copy(self._data, self.kept)
            stop = "pg_backup_stop()" if named_anew else "pg_stop_backup(false)"
            row = connection.execute(f"SELECT labelfile FROM {stop}").fetchone()  # noqa: S608 -- our own words
        assert row is not None
        self._copy(self._data / "pg_wal", self.kept / "pg_wal")
        (self.kept / "postmaster.pid").unlink()
        self._write("backup_label", row[0])
        self._write("recovery.signal", "")
        self._write("postgresql.auto.conf", "restore_command = 'false'")

    def copy_volume(self) -> None:
        """Copy the data of the stopped server, as a snapshot of its volume is."""
        self.server.kill()
        self._copy(self._data, self.kept)
        self.server.restart()
        self._reconnect()

    def set_back(self) -> None:
        """Lose everything since."""
        self.world.connection.close()
        self.server.kill()
        shutil.rmtree(self._data)
        self._copy(self.kept, self._data)
        self.server.restart()
        self._reconnect()

    @property
    def _data(self) -> Path:
        return self.server.directory / "data"

    def _copy(self, source: Path, target: Path) -> None:
        subprocess.run(["/bin/cp", "-aT", source, target], check=True)

    def _write(self, name: str, text: str) -> None:
        """As the account that owns the data, which its own directory's is."""
        path, owner = self.kept / name, self.kept.stat()
        path.write_text(text)
        os.chown(path, owner.st_uid, owner.st_gid)

    def _reconnect(self) -> None:
        self.world.connection = psycopg.connect(self.world.database_url, autocommit=True, row_factory=dict_row)
        for _ in range(300):
            if not self.world.rows("SELECT pg_is_in_recovery() AS still")[0]["still"]:
                return
            time.sleep(0.1)
        pytest.fail("the server does not end its recovery")


@contextmanager
def own_world(kept: Path) -> Iterator[Keeper]:
    server = EmbeddedPostgres()
    server.start()
    try:
        url = server.conninfo(make_template(server))
        with open_world(url) as world:
            keeper = Keeper(server=server, world=world, kept=kept)
            yield keeper
            keeper.world.connection.close()
    finally:
        server.stop()


@pytest.fixture
def keeper(short_tmp: Path) -> Iterator[Keeper]:
    with own_world(short_tmp / "kept") as made:
        yield made


def a_night_that_is_lost(keeper: Keeper, keep: Callable[[], None]) -> None:
    """One night is kept. Then comes usage, and the night that reports it is lost."""
    world = keeper.world
    for name in ("ada", "bob", "cy"):
        world.customer(name)
        world.usage(name, 3, ago=30 * HOUR)
    assert world.run().exit_code is ExitCode.OK
    for name in ("ada", "bob", "cy"):
        world.usage(name, 5)
        world.usage(name, 2, ago=2 * HOUR)
    world.usage("cy", 5)
    keep()
    world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, customer="cus_cy", times=None))
    world.run()  # what cy used is not reported in the night that is lost
    world.stripe.clear_faults()
    assert world.stripe.totals() == {
        ("ai_suggestion", "cus_ada"): 10,
        ("ai_suggestion", "cus_bob"): 10,
        ("ai_suggestion", "cus_cy"): 3,
    }


def recover(world: World, *, resend: bool = False) -> int:
    since = world.time.now() - HOUR
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        return recover_ledger(connection, world.settings(), world.time, since=since, resend=resend)


def nights(world: World, count: int) -> None:
    for _ in range(count):
        world.time.advance(80 * timedelta(minutes=1))
        world.run()


BILLED = {("ai_suggestion", "cus_ada"): 10, ("ai_suggestion", "cus_bob"): 10, ("ai_suggestion", "cus_cy"): 15}


def test_a_restored_base_backup_stops_the_job_until_it_is_recovered(keeper: Keeper) -> None:
    world = keeper.world
    a_night_that_is_lost(keeper, keeper.back_up)
    keeper.set_back()
    with pytest.raises(ConfigurationError, match="its timeline was 00000001 and is 00000002"):
        world.run()
    world.time.advance(2 * DAY)  # Stripe has forgotten the identifiers
    assert recover(world) == 7
    assert set(world.states()) == {"accepted", "in_doubt"}
    nights(world, 4)
    assert world.stripe.totals() == BILLED
    assert set(world.states()) == {"accepted"}
    world.assert_exact()


def test_without_it_the_lost_night_would_be_billed_twice(keeper: Keeper) -> None:
    """What the marks are for: a volume that is set back keeps them all."""
    world = keeper.world
    a_night_that_is_lost(keeper, keeper.copy_volume)
    keeper.set_back()
    world.time.advance(2 * DAY)
    world.run()
    assert world.stripe.totals()["ai_suggestion", "cus_ada"] == 17


def test_a_volume_that_was_set_back_is_recovered_by_hand(keeper: Keeper) -> None:
    world = keeper.world
    a_night_that_is_lost(keeper, keeper.copy_volume)
    keeper.set_back()
    world.time.advance(2 * DAY)
    assert recover(world) == 7
    nights(world, 4)
    assert world.stripe.totals() == BILLED
    world.assert_exact()


def test_within_the_day_identifiers_still_guard(keeper: Keeper) -> None:
    """After a failover: no totals are read, and the usage is in time for its invoice."""
    world = keeper.world
    a_night_that_is_lost(keeper, keeper.back_up)
    keeper.set_back()
    assert recover(world, resend=True) == 7
    assert world.run().exit_code is ExitCode.OK
    assert world.stripe.totals() == BILLED
    world.assert_exact()


def test_a_recovery_that_died_keeps_reports_from_sending(keeper: Keeper) -> None:
    """Also where the marks have not changed, and whatever it had done by then."""
    world = keeper.world
    a_night_that_is_lost(keeper, keeper.copy_volume)
    keeper.set_back()
    world.time.advance(2 * DAY)
    world.connection.execute(
        "CREATE FUNCTION dies() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'it dies'; END$$;"
        "CREATE TRIGGER dies BEFORE UPDATE ON meterctl.meter_events FOR EACH STATEMENT EXECUTE FUNCTION dies()"
    )
    with pytest.raises(psycopg.Error, match="it dies"):
        recover(world)
    world.connection.execute("DROP TRIGGER dies ON meterctl.meter_events")
    with pytest.raises(ConfigurationError, match="has begun and not ended"):
        world.run()
    recover(world)
    nights(world, 4)
    assert world.stripe.totals() == BILLED


def test_totals_read_before_the_loss_count_for_nothing(keeper: Keeper) -> None:
    """A series of reads is open as the night is lost in which its event was sent again, a moment ago: totals lag."""
    world = keeper.world
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.add_fault(Fault(kind=FaultKind.RESET, times=None))
    world.run()
    world.stripe.clear_faults()
    world.time.advance(DAY)
    world.settle()
    keeper.copy_volume()
    world.time.advance(2 * HOUR)
    world.run()  # settled as absent, and sent: this is lost
    assert world.stripe_total() == 3
    world.stripe.set_options(summary_lag_s=2400)
    keeper.set_back()
    recover(world)
    for _ in range(4):
        world.time.advance(20 * timedelta(minutes=1))
        world.run()
    nights(world, 2)
    assert world.states() == ["accepted"]
    assert [event["proven_absent"] for event in world.events()] == [False]
    assert world.stripe_total() == 3


def test_totals_are_not_read_before_they_can_be_complete(keeper: Keeper) -> None:
    """When the last call was made that is lost, nobody knows: at the latest when the database was set back."""
    world = keeper.world
    a_night_that_is_lost(keeper, keeper.back_up)
    keeper.set_back()
    recover(world)
    assert world.settle().read_count == 0
    world.time.advance(15 * timedelta(minutes=1))
    assert world.settle().read_count == 6
