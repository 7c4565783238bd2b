"""Schedules made to let one hold up the others, to lose a unit in silence, or to make an exit code lie.

What lanes, limits, several meters, overlapping runs and odd collations can do. A test is named by what must hold.
"""

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli.conftest import Shell
from meterctl.clock import SystemHostClock
from meterctl.core.model import MeterEvent, Outcome
from meterctl.errors import ExitCode, MeterctlError, UnavailableError
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import SHIPPED_TABLES
from several_meters import DAY, HOUR, LOOKUP, configured, meter, run
from world import World, open_world

# One customer, one meter, one lane must not hold up the others


def two_more_tables(world: World) -> None:
    for name in ("second", "third"):
        world.stripe.create_meter(event_name=name)
        world.connection.execute(f"CREATE TABLE usage_{name} (LIKE usage_events INCLUDING ALL)")


def used(world: World, table: str, user: str, count: int = 1) -> None:
    for _ in range(count):
        values = {"workspace_id": "ws", "user_id": user, "quantity": 1, "created_at": world.time.now() - HOUR}
        world.insert(table, values)


def three_meters(world: World, tmp_path: Path, **changes: str) -> Any:
    two_more_tables(world)
    return configured(
        world,
        tmp_path,
        meter("ai_suggestion", **changes),
        meter("second", table="usage_second", identifier="second-{id}"),
        meter("third", table="usage_third", identifier="third-{id}"),
    )


def test_a_customer_that_fails_in_two_meters_does_not_keep_the_third_waiting(world: World, tmp_path: Path) -> None:
    """Night after night, one customer's events of two meters get only 500s: Stripe is not away, as all others show."""
    settings = three_meters(world, tmp_path)
    world.customer("bad")
    world.customer("ada")
    world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, customer="cus_bad", times=None))
    for _ in range(3):
        for table in ("usage_events", "usage_second"):
            used(world, table, "bad", 3)
            used(world, table, "ada")
        used(world, "usage_third", "ada")
        run(world, settings)
        world.time.advance(DAY)
    assert world.stripe.totals().get(("second", "cus_ada")) == 3
    assert world.stripe.totals().get(("third", "cus_ada")) == 3


def test_three_failing_customers_do_not_end_the_night_of_one_that_succeeds(world: World) -> None:
    """Their last attempts fall together, between two successes of a lane that takes a few minutes."""
    for n in range(3):
        world.customer(f"bad{n}")
        world.usage(f"bad{n}")
        world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, customer=f"cus_bad{n}", times=None))
    world.customer("zoe")
    for _ in range(400):
        world.usage("zoe")

    class Distant:
        """Zoe's calls take half a second."""

        def __init__(self, events: Any) -> None:
            self._events = events

        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            world.time.advance(timedelta(seconds=0.5 if event.customer == "cus_zoe" else 0.01))
            outcome: Outcome = self._events.create(event, idempotency_key=idempotency_key)
            return outcome

    world.wrap_events = Distant
    world.run()
    assert world.stripe.totals().get(("ai_suggestion", "cus_zoe")) == 400


@pytest.mark.parametrize(
    "bad",
    [("bad",), ("bad1", "bad2", "bad3")],
    ids=["one", "three"],
)
def test_customers_whose_totals_cannot_be_read_do_not_keep_others_doubts_open(
    world: World, bad: tuple[str, ...]
) -> None:
    """Stripe says 404 for the totals of customers whose doubts are the oldest, every night: the others' are settled."""
    for name in (*bad, "zoe"):
        world.customer(name)
        world.usage(name, 3, ago=2 * HOUR)
    world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    world.run()
    world.stripe.clear_faults()
    for name in bad:
        fault = Fault(kind=FaultKind.NOT_FOUND, operation="event_summaries.list", customer=f"cus_{name}", times=None)
        world.stripe.add_fault(fault)
    for _ in range(4):
        world.time.advance(DAY)
        world.run()
    states = {event["customer"]: event["state"] for event in world.events()}
    assert states["cus_zoe"] == "accepted"


def test_a_row_that_its_meters_condition_chokes_on_holds_up_no_other_meter(world: World, tmp_path: Path) -> None:
    """`where` divides by a column of the row. That meter may end with 78; the next one is reported."""
    settings = three_meters(world, tmp_path, where="1 / quantity > 0")
    world.customer("ada")
    used(world, "usage_events", "ada")
    used(world, "usage_second", "ada")
    world.usage("ada", 0)
    with suppress(MeterctlError):
        run(world, settings)
    assert world.stripe.totals().get(("second", "cus_ada")) == 1


def test_a_row_that_its_meters_condition_chokes_on_holds_up_nothing_collected_before(
    world: World, tmp_path: Path
) -> None:
    """Ada's event waits in the ledger for Stripe to come back; by then there is a row that nobody can read."""
    settings = three_meters(world, tmp_path, where="1 / quantity > 0")
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    run(world, settings)
    world.stripe.start_listening()
    world.usage("ada", 0)
    with suppress(MeterctlError):
        run(world, settings)
    assert world.stripe.totals().get(("ai_suggestion", "cus_ada")) == 3


def test_a_meter_with_more_than_a_night_holds_does_not_keep_others_from_their_turn(
    world: World, tmp_path: Path
) -> None:
    """The first meter's backlog grows faster than --max-duration allows. The second has one row a night."""
    settings = three_meters(world, tmp_path)
    world.customer("ada")

    class Slow:
        """Every transaction takes a second."""

        def __init__(self, ledger: Any) -> None:
            self._ledger = ledger

        def __getattr__(self, name: str) -> Any:
            world.time.advance(timedelta(seconds=1))
            return getattr(self._ledger, name)

    for night in range(3):
        used(world, "usage_events", "ada", 100)
        used(world, "usage_second", "ada")
        run(
            world,
            settings,
            opened=lambda one: replace(one, ledger=Slow(one.ledger)),
            jitter=random.Random(night).random,  # noqa: S311 -- no secret, only an order
            max_duration=timedelta(minutes=1),
        )
        world.time.advance(DAY)
    assert world.stripe.totals().get(("second", "cus_ada"))


def test_a_limit_serves_first_what_waited_longest(world: World) -> None:
    """As much usage a night as the limit, and one event of an earlier outage: it is billed while Stripe takes it."""
    for name in ("ada", "bob", "zoe"):
        world.customer(name)
    world.usage("zoe", 5)
    world.stripe.stop_listening()
    world.run(limit=2)
    world.stripe.start_listening()
    for _ in range(36):
        world.time.advance(DAY)
        world.usage("ada")
        world.usage("bob")
        world.run(limit=2)
    assert world.stripe.totals().get(("ai_suggestion", "cus_zoe")) == 5


# What a run says of itself


def test_what_another_run_settled_meanwhile_is_not_called_a_problem(world: World) -> None:
    """Two hosts take the lock to be their own: the second sends, at its second attempt, what the first is about to.

    The ledger refuses to write down what the first hears then. It must not tell a person that somebody else used the
    identifier.
    """
    world.customer("ada")
    world.usage("ada", 3)
    depth = 0

    class Overtaken:
        def __init__(self, events: Any) -> None:
            self._events = events

        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            nonlocal depth
            depth += 1
            if depth == 1:
                world.run(locked=False)
            outcome: Outcome = self._events.create(event, idempotency_key=idempotency_key)
            return outcome

    world.wrap_events = Overtaken
    world.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED))
    result = world.run(locked=False)
    assert world.states() == ["accepted"]
    assert result.totals.problems == {}


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Iterator[Shell]:
    with LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        yield Shell(database_url=database_url, stripe=stripe, home=tmp_path)


def test_a_problem_is_not_told_until_it_was_printed(shell: Shell) -> None:
    """The database goes away as the run writes down its own end: what it found is news to the next run."""
    shell.usage(1, quantity="NaN")
    shell.sql(
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE 'the server is going' USING ERRCODE = '57P01'; END$$"
    )
    shell.sql("CREATE TRIGGER gone BEFORE UPDATE ON meterctl.runs FOR EACH ROW EXECUTE FUNCTION gone()")
    first = shell.run("report-usage")
    shell.sql("DROP TRIGGER gone ON meterctl.runs")
    second = shell.run("report-usage")
    told = [one for one in (first, second) if "value_not_a_number" in one.stdout + one.stderr]
    assert first.code == ExitCode.UNAVAILABLE
    assert told, "named by neither run"
    assert ExitCode.PROBLEMS in {first.code, second.code}


@contextmanager
def one_meter_locked(shell: Shell, config_file: Path) -> Iterator[None]:
    """Two meters on ten rows each; another run holds the second's lock, so that a job ends with 75 and tries again."""
    shell.stripe.create_meter(event_name="second")
    shell.sql("CREATE TABLE usage_second (LIKE usage_events INCLUDING ALL)")
    shell.usage(10, customers=5)
    config_file.write_text(
        LOOKUP + meter("ai_suggestion") + meter("second", table="usage_second", identifier="second-{id}")
    )
    shell.extra["METERCTL_CONFIG"] = str(config_file)
    with MeterLocks(shell.database_url, run_label="other", host_clock=SystemHostClock()) as locks:
        assert locks.acquire("second", timeout_s=0, stopping=lambda: False)
        yield


RETRIED = ("--job-retries", "2", "--job-retry-delay", "0", "--json")


def test_a_job_that_is_retried_stays_within_its_limit(shell: Shell, tmp_path: Path) -> None:
    """`--limit 3` is what the operator allows the command, however often it tries."""
    with one_meter_locked(shell, tmp_path / "config.toml"):
        finished = shell.run("report", "--limit", "3", *RETRIED)
    assert finished.code == ExitCode.LOCKED
    assert shell.total == 3


def test_a_job_that_is_retried_tells_all_it_reported(shell: Shell, tmp_path: Path) -> None:
    """The document is the job's: units that its first attempt billed are in no other one."""
    with one_meter_locked(shell, tmp_path / "config.toml"):
        finished = shell.run("report", *RETRIED)
    assert shell.total == 10
    assert finished.document["totals"]["units"] == "10"


def test_problems_of_a_first_attempt_outlive_the_error_of_the_last(shell: Shell, tmp_path: Path) -> None:
    """The first attempt found a bad row and ends with 75; by the second, the database is going down."""
    gone = (
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF EXISTS (SELECT FROM meterctl.runs) THEN RAISE 'the server is going' USING ERRCODE = '57P01'; END IF;"
        " RETURN NEW; END$$"
    )
    shell.sql(gone)
    shell.sql("CREATE TRIGGER gone BEFORE INSERT ON meterctl.runs FOR EACH ROW EXECUTE FUNCTION gone()")
    with one_meter_locked(shell, tmp_path / "config.toml"):
        shell.sql("UPDATE usage_events SET quantity = 'NaN' WHERE id = 1")
        first = shell.run("report", *RETRIED)
    shell.sql("DROP TRIGGER gone ON meterctl.runs")
    second = shell.run("report")
    assert first.code == ExitCode.UNAVAILABLE
    assert [one for one in (first, second) if "value_not_a_number" in one.stdout + one.stderr], "named by neither run"


def test_late_usage_of_a_run_that_died_is_news_to_the_next(world: World) -> None:
    """Its units are on no invoice. The run that was told `accepted` lost its database before it could say so."""
    world.customer(
        "ada",
        current_period_start=world.time.now() - 30 * DAY,
        current_period_end=world.time.now() - 2 * HOUR,
    )
    world.usage("ada", 50, ago=3 * HOUR)

    class LosesItsConnection:
        def __init__(self, ledger: Any) -> None:
            self._ledger = ledger

        def __getattr__(self, name: str) -> Any:
            if name == "count_open":
                raise UnavailableError("the connection is gone")
            return getattr(self._ledger, name)

    with pytest.raises(UnavailableError):
        run(world, opened=lambda one: replace(one, ledger=LosesItsConnection(one.ledger)))
    assert [event["late"] for event in world.events()] == [True]
    result = run(world)
    assert "late" in result.totals.problems
    assert result.exit_code is ExitCode.PROBLEMS


@pytest.mark.parametrize("row", ["999999", "1"], ids=["no such row", "too old to be looked at"])
def test_a_row_asked_for_that_is_not_reported_is_not_passed_over(shell: Shell, row: str) -> None:
    """`--row` names what is to be billed: 0 must not mean that it never was looked at."""
    shell.usage(1)
    shell.sql("UPDATE usage_events SET created_at = now() - interval '90 days'")
    assert shell.run("report-usage", "--row", row).code == ExitCode.BAD_INPUT


# Names and collations


@pytest.fixture
def sorted_world(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in a database that sorts as people do: a, A, b, B, and punctuation as if it were not there."""
    made = short_tmp / "en_US.UTF-8"
    command = ["localedef", "-i", "en_US", "-f", "UTF-8", str(made)]
    if shutil.which("localedef") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("localedef cannot make en_US.UTF-8 here")
    monkeypatch.setenv("LOCPATH", str(short_tmp))
    server = EmbeddedPostgres()
    server.start()
    try:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE sorted TEMPLATE template0 LC_COLLATE 'en_US.UTF-8' LC_CTYPE 'C.UTF-8'")
        url = server.conninfo("sorted")
        migrate(url)
        with psycopg.connect(url) as connection:
            connection.execute(SHIPPED_TABLES.read_bytes())
        with open_world(url) as opened:
            yield opened
    finally:
        server.stop()


@pytest.mark.parametrize("limit", [None, 7])
def test_no_lane_is_skipped_whatever_the_order_of_its_letters(sorted_world: World, limit: int | None) -> None:
    world = sorted_world
    assert world.rows("SELECT 'a' < 'B' AND '_b' > 'a' AS so")[0]["so"], "not the order of the bytes"
    names = [a + b + c for a in "aAbBzZ" for b in ("", "_", "-", "é") for c in ("x", "X", "1")]
    for n, name in enumerate(names):
        world.customer(name)
        for _ in range(1 + n % 4):
            world.usage(name)
    for _ in range(1 if limit is None else 30):
        result = world.run(limit=limit)
        assert result.exit_code is ExitCode.OK
    assert set(world.states()) == {"accepted"}
    assert (len(world.events()), result.totals.remaining) == (180, 0)
    world.assert_exact()


def test_a_meter_that_was_renamed_and_is_restored_as_told_bills_nothing_twice(world: World, tmp_path: Path) -> None:
    """Key, event_name and template were changed while an event was due; its hint says to restore its meter."""
    world.stripe.create_meter(event_name="renamed")
    world.customer("ada")
    world.usage("ada", 3)
    old = meter("old", event_name="ai_suggestion", identifier="{event_name}-{id}")
    new = meter("new", event_name="renamed", identifier="{event_name}-{id}")
    world.stripe.stop_listening()
    run(world, configured(world, tmp_path, old))
    world.stripe.start_listening()
    assert run(world, configured(world, tmp_path, new)).exit_code is ExitCode.PROBLEMS
    with suppress(MeterctlError):
        run(world, configured(world, tmp_path, old))
    assert world.stripe_total() == 3


def test_what_a_dead_run_rejected_is_named_though_the_event_name_was_changed(world: World) -> None:
    """The run that found a bad row was killed before it could say so; then the meter got another event_name."""
    world.stripe.create_meter(event_name="renamed")
    world.customer("ada")
    world.usage("ada", "NaN")

    class Killed(BaseException):
        pass

    class DiesBeforeTelling:
        def __init__(self, ledger: Any) -> None:
            self._ledger = ledger

        def __getattr__(self, name: str) -> Any:
            if name == "count_open":
                raise Killed
            return getattr(self._ledger, name)

    with pytest.raises(Killed):
        run(world, opened=lambda one: replace(one, ledger=DiesBeforeTelling(one.ledger)))
    world.config["meters.ai_suggestion.event_name"] = "renamed"
    result = run(world)
    assert "local:value_not_a_number" in result.totals.problems
    assert result.exit_code is ExitCode.PROBLEMS


def test_what_waits_for_an_old_doubt_is_counted(world: World) -> None:
    """A new row of the minute of an old doubt is not sent while that is undecided: the run leaves it, and says so."""
    world.customer("ada")
    used_at = world.time.now() - HOUR
    world.usage("ada", 3, created_at=used_at)
    world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    world.run()
    world.stripe.clear_faults()
    world.time.advance(DAY)
    world.usage("ada", 5, created_at=used_at + timedelta(seconds=1))
    result = world.run()
    assert world.states() == ["in_doubt", "pending"]
    assert result.totals.held + result.totals.remaining == 2
