"""One bad lane, one hung peer, a database that fails at any step: nobody else waits, and nothing is lost."""

import threading
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from meterctl.actions.meter_report import MeterJob
from meterctl.core.model import MeterEvent, Outcome
from meterctl.errors import MeterctlError, UnavailableError
from meterctl.postgres.connect import connect, transaction
from meterctl.postgres.ledger import PostgresMeterLedger
from meterctl.sandbox.local_stripe import Fault, FaultKind
from several_meters import DAY, HOUR, configured, meter, run, stamped_units
from world import World

if TYPE_CHECKING:
    from meterctl.actions.report import ReportResult


def test_a_customer_that_always_fails_does_not_keep_other_meters_waiting(world: World, tmp_path: Path) -> None:
    """Night after night one customer of the first meter gets only 500s; the second meter is reported all the same."""
    world.stripe.create_meter(event_name="second")
    world.connection.execute("CREATE TABLE usage_v2 (LIKE usage_events INCLUDING ALL)")
    settings = configured(world, tmp_path, meter("ai_suggestion"), meter("second", table="usage_v2"))
    world.customer("bad")
    world.customer("ada")
    world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, customer="cus_bad", times=None))
    for _ in range(3):
        world.usage("ada")
        for _ in range(5):
            world.usage("bad")
        world.insert(
            "usage_v2",
            {"workspace_id": "ws", "user_id": "ada", "quantity": 1, "created_at": world.time.now() - HOUR},
        )
        run(world, settings)
        world.time.advance(DAY)
    assert world.stripe.totals().get(("ai_suggestion", "cus_ada")) == 3
    assert world.stripe.totals().get(("second", "cus_ada")) == 3


def test_a_failing_lane_as_long_as_the_limit_lets_others_in(world: World) -> None:
    """`--limit` nights: events of one customer that stay due must not use up the limit for ever."""
    world.customer("bad")
    world.customer("ada")
    for _ in range(60):
        world.usage("bad", ago=2 * HOUR)
    world.usage("ada", 3)
    world.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, customer="cus_bad", times=None))
    for _ in range(4):
        world.run(limit=60)
        world.time.advance(DAY)
    assert world.stripe_total() == 3


def test_a_hung_transaction_in_one_lane_holds_up_that_lane_only(world: World) -> None:
    """Another host was suspended between its claim and its COMMIT; its claim of ada's lane is undecided."""
    for name in ("ada", "bob"):
        world.customer(name)
        world.usage(name)
        world.usage(name)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    done: list[ReportResult] = []
    with psycopg.connect(world.database_url) as hung:
        hung.execute(
            "UPDATE meterctl.meter_events SET state = 'sending', claimed_from = 'pending', claimed_at = now(),"
            " doubt_since = now(), attempt_count = attempt_count + 1, run_id = 999"
            " WHERE id = (SELECT min(id) FROM meterctl.meter_events WHERE customer = 'cus_ada')"
        )
        thread = threading.Thread(target=lambda: done.append(world.run(max_duration=timedelta(seconds=2))), daemon=True)
        thread.start()
        thread.join(timeout=20)
        finished = not thread.is_alive()
        total = world.stripe.totals().get(("ai_suggestion", "cus_bob"))
        hung.rollback()
        thread.join(timeout=60)
    assert total == 2, "bob's events wait for ada's lane"
    assert finished


def test_a_hung_record_of_another_host_does_not_stop_the_night(world: World) -> None:
    """Another host was suspended between writing down ada's answer and its COMMIT: her row is locked, bob is not."""
    for name in ("ada", "bob"):
        world.customer(name)
        world.usage(name)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    world.connection.execute(
        "UPDATE meterctl.meter_events SET state = 'sending', claimed_from = 'pending', claimed_at = now(),"
        " doubt_since = now(), attempt_count = attempt_count + 1, run_id = 999 WHERE customer = 'cus_ada'"
    )
    with psycopg.connect(world.database_url) as hung:
        hung.execute("SELECT FROM meterctl.meter_events WHERE customer = 'cus_ada' FOR UPDATE")
        with suppress(UnavailableError):
            world.run()
        total = world.stripe.totals().get(("ai_suggestion", "cus_bob"))
        hung.rollback()
    assert total == 1


def test_a_transaction_whose_client_sleeps_ends_by_itself(database_url: str) -> None:
    """A suspended machine must not hold its locks until it wakes: the server ends its transaction."""
    with connect(database_url) as connection, transaction(connection):
        row = connection.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    assert row is not None
    assert row[0] != "0"


# Databases that fail at any step


class Mortal:
    """A ledger whose connection dies at its nth step: before it, or after its COMMIT but before we hear of that."""

    def __init__(self, ledger: PostgresMeterLedger, nth: int, *, after: bool) -> None:
        self._ledger, self._left, self._after = ledger, nth, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def step(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise UnavailableError("the connection is gone")
            result = method(*arguments, **named)
            if self._left == 0:
                raise UnavailableError("the connection is gone")
            return result

        return step


@pytest.mark.parametrize("after", [False, True], ids=["before", "after-commit"])
def test_a_database_that_goes_away_at_any_step_costs_no_unit(world: World, after: bool) -> None:  # noqa: FBT001 -- a table
    for name in ("ada", "bob"):
        world.customer(name)
    for nth in range(1, 14):
        for _ in range(2):
            world.usage("ada", 3)
            world.usage("bob", 2)
        if nth % 3 == 0:
            world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER))

        def mortal(opened: MeterJob, nth: int = nth) -> MeterJob:
            ledger = Mortal(opened.ledger, nth, after=after)  # type: ignore[arg-type] # the adapter itself
            return replace(opened, ledger=ledger)

        with suppress(UnavailableError):
            run(world, opened=mortal, batch_size=1)
    run(world)
    assert set(world.states()) == {"accepted"}
    assert world.stripe_total() == 13 * 2 * 5
    assert stamped_units(world) == 13 * 2 * 5
    world.assert_exact()


def test_two_runs_that_both_think_they_are_alone_bill_once(world: World) -> None:
    """The lock is courtesy: here the second run takes over in the midst of the first, again and again."""
    for n in range(4):
        world.customer(f"c{n}")
        for _ in range(5):
            world.usage(f"c{n}", 2)
    depth = 0

    class Interrupted:
        def __init__(self, events: Any) -> None:
            self._events = events

        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            nonlocal depth
            depth += 1
            if depth in {2, 5, 9}:
                world.connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                )
                with suppress(MeterctlError):
                    world.run()
            outcome: Outcome = self._events.create(event, idempotency_key=idempotency_key)
            return outcome

    world.wrap_events = Interrupted
    with suppress(MeterctlError):
        world.run()
    world.wrap_events = lambda events: events
    world.run()
    assert world.stripe_total() == 40
    assert set(world.states()) == {"accepted"}
    world.assert_exact()
