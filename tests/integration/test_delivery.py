"""Answers and their absence: each trap in which a hand-written job bills twice, loses a unit or wedges."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from meterctl.core.model import MeterEvent, Outcome
from meterctl.errors import ExitCode
from meterctl.ports import MeterEvents
from meterctl.sandbox.local_stripe import Fault, FaultKind
from world import World

HOUR = timedelta(hours=1)


def one_event(world: World, quantity: int = 3) -> None:
    world.customer("ada")
    world.usage("ada", quantity)


def script(world: World, *kinds: FaultKind | dict[str, Any]) -> None:
    """One fault for each call in turn."""
    for nth, kind in enumerate(kinds, start=1):
        fault = {"kind": kind} if isinstance(kind, FaultKind) else kind
        world.stripe.add_fault(Fault(**fault, nth=nth))


def keys(world: World) -> list[str | None]:
    return [r.idempotency_key for r in world.stripe.requests() if r.path == "/v1/billing/meter_events"]


def test_a_lost_answer_is_sent_again_under_the_same_key_and_billed_once(world: World) -> None:
    one_event(world)
    script(world, FaultKind.LOST_ANSWER)
    result = world.run()
    assert (result.totals.reported, world.stripe_total()) == (1, 3)
    assert len(set(keys(world))) == 1, "nothing was heard, so the key stays and Stripe replays the lost answer"
    world.assert_exact()


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": FaultKind.RATE_LIMITED},
        {"kind": FaultKind.LOCK_TIMEOUT},
        {"kind": FaultKind.CONFLICT},
    ],
)
def test_a_lost_answer_then_not_processed_keeps_the_doubt(world: World, answer: dict[str, Any]) -> None:
    one_event(world)
    script(world, FaultKind.LOST_ANSWER, answer)
    result = world.run()
    assert (result.totals.reported, result.totals.duplicate) == (1, 1)
    assert world.events()[0]["settled_by"] == "already_exists"
    world.assert_exact()


def test_a_lost_answer_then_401_stays_in_doubt_and_stops_the_run(world: World) -> None:
    one_event(world)
    script(world, FaultKind.LOST_ANSWER, FaultKind.UNAUTHORIZED)
    result = world.run()
    assert (result.exit_code, world.states()) == (ExitCode.NOT_PERMITTED, ["in_doubt"])
    assert world.run().totals.duplicate == 1
    world.assert_exact()


def test_no_answer_then_too_old_stays_in_doubt(world: World) -> None:
    one_event(world)
    message = (
        "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to 1."
    )
    script(world, FaultKind.RESET, {"kind": FaultKind.BAD_REQUEST, "message": message})
    world.run()
    event = world.events()[0]
    assert (event["state"], event["error_code"]) == ("in_doubt", "timestamp_too_far_in_past")
    world.run()
    world.assert_exact()


@pytest.mark.parametrize("before", [FaultKind.UNAUTHORIZED, FaultKind.RATE_LIMITED])
def test_already_exists_without_any_doubt_is_somebody_elses_event(world: World, before: FaultKind) -> None:
    """A 401 or 429 proves its own attempt unprocessed, so it is no reason to take the identifier for ours."""
    one_event(world)
    identifier = identifier_of_the_row(world)
    report_elsewhere(world, identifier)
    script(world, before)
    world.run()
    world.run()
    assert [(e["state"], e["error_code"]) for e in world.events()] == [("rejected", "identifier_taken")]
    assert world.stripe_total() == 1


def identifier_of_the_row(world: World) -> str:
    row_id = world.rows("SELECT id FROM usage_events")[0]["id"]
    return f"ws-ada-{row_id}"


def report_elsewhere(world: World, identifier: str) -> None:
    import stripe  # noqa: PLC0415 -- somebody else's program

    sdk = stripe.StripeClient(world.stripe.api_key, base_addresses={"api": world.stripe.url})
    payload = {"stripe_customer_id": "cus_ada", "value": "1"}
    timestamp = int(world.time.now().timestamp())
    sdk.v1.billing.meter_events.create(
        {"event_name": "ai_suggestion", "payload": payload, "identifier": identifier, "timestamp": timestamp}
    )


def test_during_the_cut_over_a_known_identifier_is_the_predecessors_report(world: World) -> None:
    one_event(world)
    report_elsewhere(world, identifier_of_the_row(world))
    world.config["meters.ai_suggestion.adopt_identifiers_until"] = (world.time.now() + HOUR).isoformat()
    result = world.run()
    assert (result.totals.reported, result.totals.duplicate, world.stripe_total()) == (1, 1, 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stored_500_is_not_replayed_for_ever(world: World, when: str) -> None:
    """Stripe replays the stored 500 under the same key: any answer heard moves the key on, the identifier guards."""
    one_event(world)
    script(world, {"kind": FaultKind.ERROR_500, "when": when})
    result = world.run()
    assert (result.totals.reported, world.stripe_total()) == (1, 3)
    assert len(set(keys(world))) == 2
    world.assert_exact()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": FaultKind.NOT_FOUND},
        {"kind": FaultKind.REQUEST_TIMEOUT},
        {"kind": FaultKind.HTML},
        {"kind": FaultKind.HTML, "status": 200},
        {"kind": FaultKind.HTML, "when": "after"},
        {"kind": FaultKind.RESET},
        {"kind": FaultKind.TIME_OUT, "when": "after"},
        {"kind": FaultKind.TIME_OUT, "when": "before"},
    ],
)
def test_an_answer_that_proves_nothing_leaves_a_doubt_that_the_next_attempt_settles(
    world: World, fault: dict[str, Any]
) -> None:
    one_event(world)
    script(world, fault)
    result = world.run()
    event = world.events()[0]
    assert (result.totals.reported, event["state"], event["ever_in_doubt"]) == (1, "accepted", True)
    world.assert_exact()


def test_a_rejected_event_is_named_and_holds_up_nobody(world: World) -> None:
    world.customer("ghost", known=False)
    world.customer("ada")
    world.usage("ghost", 5)
    world.usage("ada", 3)
    result = world.run()
    assert (result.totals.reported, result.totals.rejected, result.exit_code) == (1, 1, ExitCode.PROBLEMS)
    assert world.run().totals.total == 0, "nothing retries a rejection by itself"
    world.assert_exact()


def test_a_missing_meter_stops_the_meter_and_returns_its_events(world: World) -> None:
    one_event(world)
    world.config["meters.ai_suggestion.event_name"] = "unheard_of"
    result = world.run()
    assert (result.exit_code, result.totals.rejected, world.states()) == (ExitCode.CONFIGURATION, 0, ["pending"])
    world.stripe.create_meter(event_name="unheard_of")
    assert world.run().totals.reported == 1


def test_a_dead_runs_claims_are_taken_over_at_once(world: World) -> None:
    """The process dies between the call and the record: the next run that has the lock asks again, and is told."""
    one_event(world)

    class Killed(BaseException):
        pass

    class DiesAfterSending:
        def __init__(self, events: MeterEvents) -> None:
            self._events = events

        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            self._events.create(event, idempotency_key=idempotency_key)
            raise Killed

    world.wrap_events = DiesAfterSending
    with pytest.raises(Killed):
        world.run()
    assert (world.states(), world.stripe_total()) == (["sending"], 3)
    world.wrap_events = lambda events: events
    result = world.run()
    assert (result.exit_code, result.totals.reported, world.stripe_total()) == (ExitCode.OK, 1, 3)
    world.assert_exact()


def test_a_doubt_of_23_hours_is_not_sent_again(world: World) -> None:
    """Stripe's totals decide it, and one read of them decides nothing."""
    one_event(world)
    script(world, *[FaultKind.LOST_ANSWER] * 5)
    world.run()
    assert world.states() == ["in_doubt"]
    world.time.advance(24 * HOUR)
    calls = len(keys(world))
    result = world.run()
    assert (result.totals.held, result.exit_code, len(keys(world))) == (1, ExitCode.OK, calls)
    assert (world.states(), world.events()[0]["held_reason"]) == (["in_doubt"], None)


def test_a_doubt_of_22_hours_is_sent_again(world: World) -> None:
    one_event(world)
    script(world, *[FaultKind.LOST_ANSWER] * 5)
    world.run()
    world.time.advance(22 * HOUR)
    assert world.run().totals.reported == 1
    world.assert_exact()


def test_clocks_five_minutes_apart_stop_the_claiming(world: World) -> None:
    for name in ("ada", "bob"):
        world.customer(name)
        world.usage(name)
    world.stripe.clock.set(world.time.now() + timedelta(minutes=6), frozen=True)
    result = world.run()
    assert result.exit_code is ExitCode.UNAVAILABLE
    assert any("> 5 min apart" in note for note in result.notes)


def test_three_events_that_exhaust_their_attempts_are_an_outage(world: World) -> None:
    for n in range(200):
        world.customer(f"c{n}")
        world.usage(f"c{n}")
    world.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, times=None))
    started = world.time.now()
    result = world.run()
    assert (result.exit_code, result.totals.reported) == (ExitCode.UNAVAILABLE, 0)
    assert world.time.now() - started < timedelta(minutes=3)
    assert set(world.states()) == {"pending"}
    world.stripe.clear_faults()
    assert world.run().totals.reported == 200
    world.assert_exact()


def test_a_dead_stripe_ends_the_run_within_three_minutes(world: World) -> None:
    one_event(world)
    world.stripe.stop_listening()
    started = world.time.now()
    result = world.run()
    assert (result.exit_code, world.states()) == (ExitCode.UNAVAILABLE, ["pending"])
    assert world.time.now() - started < timedelta(minutes=3)


def test_a_locked_usage_row_does_not_hold_up_the_others(world: World) -> None:
    world.customer("ada")
    world.customer("bob")
    locked = world.usage("ada", 1)
    world.usage("bob", 2)
    with psycopg.connect(world.database_url) as other:
        other.execute("SELECT FROM usage_events WHERE id = %s FOR UPDATE", [locked])
        result = world.run()
        assert (result.totals.reported, result.exit_code) == (2, ExitCode.OK)
    unstamped = "SELECT id FROM usage_events WHERE stripe_reported_at IS NULL"
    assert [row["id"] for row in world.rows(unstamped)] == [locked]
    world.run()
    assert world.rows(unstamped) == [], "the next run stamps what was locked, without sending anything"
    world.assert_exact()


def test_a_trigger_that_refuses_the_stamp_loses_no_answer(world: World) -> None:
    one_event(world)
    world.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no stamps today'; END$$;"
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON usage_events DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    result = world.run()
    assert (result.totals.reported, world.states()) == (1, ["accepted"])
    world.connection.execute("DROP TRIGGER refuse ON usage_events")
    world.run()
    assert world.rows("SELECT count(*) AS n FROM usage_events WHERE stripe_reported_at IS NULL")[0]["n"] == 0
    world.assert_exact()


def test_a_suspended_machine_sends_nothing_old(world: World) -> None:
    """Thirty hours pass between claim and call: the claim is returned, not sent."""
    one_event(world)
    exchange = world.time
    world.run_after_claim = lambda: exchange.advance(30 * HOUR)
    result = world.run()
    assert (result.totals.reported, world.stripe_total(), world.states()) == (0, 0, ["pending"])
    assert result.totals.remaining == 1
    world.run_after_claim = lambda: None
    assert world.run().totals.reported == 1
    world.assert_exact()


def test_a_customer_whose_events_all_fail_does_not_hold_up_the_others(world: World) -> None:
    for name in ("bad", *(f"c{n}" for n in range(20))):
        world.customer(name)
    for _ in range(150):
        world.usage("bad")
    for n in range(20):
        for _ in range(10):
            world.usage(f"c{n}")
    world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, customer="cus_bad", times=None))
    result = world.run()
    assert (result.totals.reported, result.exit_code) == (200, ExitCode.UNAVAILABLE)
    world.stripe.clear_faults()
    assert world.run().totals.reported == 150
    world.assert_exact()


def test_a_table_that_counts_from_one_again_is_noticed(world: World) -> None:
    """A new row under a used id is neither stamped as reported nor billed under the old identifier: it is named."""
    one_event(world)
    world.run()
    world.connection.execute("TRUNCATE usage_events RESTART IDENTITY")
    world.usage("ada", 9, ago=timedelta(minutes=5))
    result = world.run()
    assert (result.exit_code, result.totals.rejected) == (ExitCode.PROBLEMS, 1)
    assert result.totals.problems["row_reused"].count == 1
    assert world.rows("SELECT count(*) AS n FROM usage_events WHERE stripe_reported_at IS NULL")[0]["n"] == 1


def test_a_period_without_end_wedges_nothing(world: World) -> None:
    world.customer("ada")
    world.customer("bob")
    world.connection.execute(
        "UPDATE subscriptions SET current_period_start = '-infinity',"
        " current_period_end = CASE user_id WHEN 'ada' THEN 'infinity' ELSE '20000-01-01' END::timestamptz"
    )
    world.usage("ada")
    world.usage("bob")
    assert world.run().totals.reported == 2
    assert [event["period_end"] for event in world.events()] == [None, None]
