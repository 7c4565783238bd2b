"""Old doubts are decided by Stripe's totals: twice read, an hour apart, and only where exactly one answer fits."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from meterctl.actions.report import ReportResult
from meterctl.errors import ExitCode
from meterctl.ports import Reading, Totals
from meterctl.sandbox.local_stripe import Fault, FaultKind
from meterctl.stripe_api.client import stripe_client
from world import World

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def doubt(world: World, *quantities: Any, user: str = "ada", stored: bool, ago: timedelta = HOUR) -> None:
    """Usage of one minute whose every attempt is lost: after Stripe stored it, or before."""
    kind = FaultKind.LOST_ANSWER if stored else FaultKind.RESET
    for quantity in quantities:
        world.usage(user, quantity, ago=ago)
    world.stripe.add_fault(Fault(kind=kind, customer=f"cus_{user}", times=None))
    world.run()
    world.stripe.clear_faults()
    assert set(world.states()) <= {"in_doubt", "accepted"}


def nights(world: World, *waits: timedelta, **options: Any) -> list[ReportResult]:
    """Reports, each after a wait."""
    results = []
    for wait in waits:
        world.time.advance(wait)
        results.append(world.run(**options))
    return results


def foreign(world: World, value: Any) -> None:
    """Somebody else reports for ada, in the minute of the first event."""
    stripe_client(world.settings().stripe, connections_max=1).v1.billing.meter_events.create(
        {
            "event_name": "ai_suggestion",
            "payload": {"stripe_customer_id": "cus_ada", "value": str(value)},
            "timestamp": int(world.events()[0]["sent_timestamp"].timestamp()),
        }
    )


def settlements(world: World) -> list[dict[str, Any]]:
    return world.rows("SELECT * FROM meterctl.settlements ORDER BY id")


def reads(world: World) -> int:
    return len(world.stripe.requests("event_summaries.list"))


@pytest.fixture
def ada(world: World) -> World:
    world.customer("ada")
    return world


def test_what_stripe_has_is_accepted_after_two_reads_an_hour_apart(ada: World) -> None:
    doubt(ada, 3, stored=True)
    first, second = nights(ada, DAY, HOUR)
    assert (first.totals.reported, first.totals.held, first.exit_code) == (0, 1, ExitCode.OK)
    assert (second.totals.reported, second.totals.units, second.exit_code) == (1, 3, ExitCode.OK)
    assert (ada.states(), ada.events()[0]["settled_by"], ada.stripe_total()) == (["accepted"], "totals", 3)
    assert ada.rows("SELECT id FROM usage_events WHERE stripe_reported_at IS NULL") == []
    ada.assert_exact()


def test_what_stripe_has_not_is_sent_again_under_its_identifier(ada: World) -> None:
    doubt(ada, 3, stored=False)
    identifier = ada.events()[0]["identifier"]
    nights(ada, DAY, HOUR)
    assert (ada.states(), ada.events()[0]["settled_by"], ada.stripe_total()) == (["accepted"], "answer", 3)
    assert [event.identifier for event in ada.stripe.events()] == [identifier]
    ada.assert_exact()


def test_a_stored_answer_to_an_attempt_that_totals_found_absent_proves_nothing(ada: World) -> None:
    """Stripe drops after its 200 what it got last, an hour before the doubt is a day old, and nobody hears the 200."""
    doubt(ada, 3, stored=False)
    ada.time.advance(22 * HOUR)
    ada.stripe.reject_later(customer="cus_ada")
    ada.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, customer="cus_ada", times=None))
    ada.run()
    ada.stripe.clear_faults()
    nights(ada, 75 * MINUTE, 61 * MINUTE)
    assert (ada.states(), ada.stripe_total()) == (["in_doubt"], 0)
    nights(ada, 24 * HOUR, 61 * MINUTE)
    assert (ada.states(), ada.stripe_total()) == (["accepted"], 3)
    ada.assert_exact()


def test_the_evidence_is_kept(ada: World) -> None:
    doubt(ada, 3, stored=True)
    nights(ada, DAY, HOUR)
    (series,) = settlements(ada)
    assert (series["stripe_total"], series["accepted_total"], series["read_count"]) == (3, 0, 2)
    assert series["last_seen"] - series["first_seen"] >= HOUR
    assert (series["decision"], series["present_ids"], series["absent_ids"]) == ("settled", [ada.events()[0]["id"]], [])


def test_some_of_a_minute_present_and_some_absent(ada: World) -> None:
    doubt(ada, 3, stored=True)
    doubt(ada, 5, stored=False, ago=HOUR + timedelta(seconds=20))
    nights(ada, DAY, HOUR)
    assert [(e["value"], e["settled_by"]) for e in ada.events()] == [(3, "totals"), (5, "answer")]
    assert ada.stripe_total() == 8
    ada.assert_exact()


def test_what_is_accepted_in_the_minute_is_counted(ada: World) -> None:
    ada.usage("ada", 7)
    ada.run()
    doubt(ada, 3, stored=True)
    nights(ada, DAY, HOUR)
    assert (set(ada.states()), ada.stripe_total()) == ({"accepted"}, 10)
    ada.assert_exact()


def test_one_read_decides_nothing_and_another_soon_after_is_not_made(ada: World) -> None:
    doubt(ada, 3, stored=False)
    nights(ada, DAY, timedelta(minutes=59))
    assert (ada.states(), reads(ada)) == (["in_doubt"], 1)
    nights(ada, MINUTE)
    assert (ada.states(), reads(ada)) == (["accepted"], 2)


def test_totals_that_lag_decide_nothing_before_they_have_caught_up(ada: World) -> None:
    """Sent last at 22 h 50 min, and Stripe shows it 75 minutes later: the first read was before that."""
    ada.stripe.set_options(summary_lag_s=75 * 60)
    doubt(ada, 3, stored=False)
    ada.time.advance(timedelta(hours=22, minutes=50))
    ada.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    ada.run()
    ada.stripe.clear_faults()
    nights(ada, timedelta(minutes=15), HOUR, HOUR, HOUR)
    assert (ada.states(), ada.stripe_total()) == (["accepted"], 3)
    assert [series["decision"] for series in settlements(ada)] == ["broken", "settled"]
    ada.assert_exact()


def test_a_minute_in_which_something_was_just_sent_is_not_read(ada: World) -> None:
    doubt(ada, 3, stored=True)
    ada.time.advance(timedelta(hours=22, minutes=58))
    ada.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    ada.run()
    ada.stripe.clear_faults()
    nights(ada, timedelta(minutes=10))
    assert reads(ada) == 0
    nights(ada, timedelta(minutes=10))
    assert reads(ada) == 1


def test_newer_usage_of_the_minute_waits_and_other_minutes_do_not(ada: World) -> None:
    doubt(ada, 3, stored=True)
    ada.time.advance(DAY)
    same_minute = ada.events()[0]["sent_timestamp"]
    ada.usage("ada", 5, created_at=same_minute)
    ada.usage("ada", 7, created_at=same_minute + MINUTE)
    result = ada.run()
    assert (result.totals.reported, ada.states()) == (1, ["in_doubt", "pending", "accepted"])
    assert result.exit_code is ExitCode.OK, "it waits for a decision, not for a person"
    nights(ada, HOUR)
    assert (set(ada.states()), ada.stripe_total()) == ({"accepted"}, 15)
    ada.assert_exact()


@pytest.mark.parametrize(
    ("values", "total", "reason"),
    [([3], 4, "foreign"), ([1, 2, 3], 3, "ambiguous"), ([3], 1, "foreign")],
)
def test_totals_that_fit_no_one_answer_are_a_persons(ada: World, values: list[int], total: int, reason: str) -> None:
    doubt(ada, *values, stored=False)
    foreign(ada, total)
    result = nights(ada, DAY, HOUR)[-1]
    assert {event["held_reason"] for event in ada.events()} == {reason}
    assert (result.totals.held, result.exit_code) == (len(values), ExitCode.PROBLEMS)
    assert result.totals.problems["held"].count == len(values)
    nights(ada, DAY, HOUR)
    assert (reads(ada), ada.stripe_total()) == (2, total), "a held doubt is neither read nor sent again"


def test_less_than_what_is_accepted_is_a_shortfall(ada: World) -> None:
    doubt(ada, 3, stored=False)
    foreign(ada, -2)
    nights(ada, DAY, HOUR)
    assert ada.events()[0]["held_reason"] == "shortfall"


def test_what_is_held_keeps_no_other_event_of_its_minute_waiting(ada: World) -> None:
    doubt(ada, 3, stored=False)
    foreign(ada, 4)
    nights(ada, DAY, HOUR)
    ada.usage("ada", 5, created_at=ada.events()[0]["sent_timestamp"])
    assert ada.run().totals.reported == 1


def test_absent_and_too_old_is_expired_and_named(ada: World) -> None:
    doubt(ada, 3, stored=False)
    first, second, third = nights(ada, 35 * DAY, HOUR, HOUR)
    assert (first.totals.expired, second.totals.expired, ada.states()) == (0, 1, ["expired"])
    assert second.exit_code is ExitCode.PROBLEMS
    assert (third.exit_code, ada.stripe_total()) == (ExitCode.OK, 0)


def test_present_and_too_old_is_accepted(ada: World) -> None:
    doubt(ada, 3, stored=True)
    nights(ada, 35 * DAY, HOUR)
    assert (ada.states(), ada.stripe_total()) == (["accepted"], 3)


def test_present_but_sent_after_its_invoice_was_final_is_late(ada: World) -> None:
    ada.customer("eve", current_period_end=ada.time.now() - 3 * HOUR, current_period_start=ada.time.now() - 30 * DAY)
    doubt(ada, 3, user="eve", stored=True, ago=4 * HOUR)
    result = nights(ada, DAY, HOUR)[-1]
    assert (result.totals.late, result.totals.late_units) == (1, 3)


def test_a_counting_meter_weighs_each_event_one(ada: World) -> None:
    ada.stripe.create_meter(event_name="runs", formula="count")
    ada.config |= {
        "meters.ai_suggestion.event_name": "runs",
        "meters.ai_suggestion.formula": "count",
        "meters.ai_suggestion.value": None,
    }
    doubt(ada, 3, 3, stored=True)
    nights(ada, DAY, HOUR)
    assert [event["settled_by"] for event in ada.events()] == ["totals", "totals"]
    assert ada.stripe_total() == 2


def test_a_doubtful_zero_is_accepted(ada: World) -> None:
    doubt(ada, 0, stored=False)
    nights(ada, DAY, HOUR)
    assert (ada.states(), ada.events()[0]["settled_by"]) == (["accepted"], "totals")


def test_a_key_that_may_not_read_totals_is_77_and_the_rest_is_delivered(ada: World) -> None:
    doubt(ada, 3, stored=True)
    ada.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, operation="event_summaries.list", times=None))
    ada.time.advance(DAY)
    ada.usage("ada", 5)
    result = ada.run()
    assert (result.exit_code, result.totals.reported) == (ExitCode.NOT_PERMITTED, 1)
    assert "not settled" in result.notes[0]


def test_a_throttled_read_waits_and_is_made(ada: World) -> None:
    doubt(ada, 3, stored=True)
    ada.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, operation="event_summaries.list"))
    nights(ada, DAY, HOUR)
    assert ada.states() == ["accepted"]


def test_a_ledger_that_moved_on_since_the_read_decides_nothing(ada: World) -> None:
    """Another run accepts an event of the minute between the read and the decision."""
    doubt(ada, 3, stored=True)
    nights(ada, DAY)

    def meanwhile() -> None:
        ada.connection.execute(
            "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
            " sent_timestamp, payload, state, accepted_at, settled_by, collected_at, livemode, account)"
            " SELECT meter, event_name, 'other', customer, 1, 1, occurred_at, sent_timestamp, payload, 'accepted',"
            " now(), 'answer', now(), livemode, account FROM meterctl.meter_events WHERE state = 'in_doubt'"
        )

    class Slow:
        def __init__(self, totals: Totals) -> None:
            self._totals = totals

        def total(self, customer: str, start: datetime, end: datetime) -> Reading:
            reading = self._totals.total(customer, start, end)
            meanwhile()
            return reading

    ada.wrap_totals = Slow
    nights(ada, HOUR)
    assert ada.states() == ["in_doubt", "accepted"]


def test_an_undecided_doubt_becomes_a_problem_after_three_days(ada: World) -> None:
    doubt(ada, 3, stored=True)
    ada.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, operation="event_summaries.list", times=None))
    assert "held" not in nights(ada, DAY, DAY)[-1].totals.problems
    assert nights(ada, DAY + HOUR)[-1].totals.problems["held"].count == 1


def test_two_minutes_of_one_customer_are_decided_each_by_itself(ada: World) -> None:
    doubt(ada, 3, stored=True)
    doubt(ada, 3, stored=False, ago=HOUR + 2 * MINUTE)
    nights(ada, DAY, HOUR)
    assert [event["settled_by"] for event in ada.events()] == ["totals", "answer"]
    assert ada.stripe_total() == Decimal(6)
    ada.assert_exact()
