"""The ledger beside Stripe's totals: what is equal is proven, and what is not is found, named and told how to mend."""

from datetime import timedelta
from decimal import Decimal

import pytest

from meterctl.core.reconciliation import Cause
from meterctl.core.spans import Span
from meterctl.errors import ExitCode
from meterctl.sandbox.local_stripe import Fault, FaultKind
from reconciling import (
    COUNTING_METER,
    DAY,
    HOUR,
    MINUTE,
    at,
    figures,
    foreign,
    kept,
    later,
    lose,
    minute_of,
    only_one,
    reads,
    reconcile,
)
from world import World


def test_equal_totals_are_proven(ada: World) -> None:
    for ago in (HOUR, DAY, 30 * DAY):
        ada.usage("ada", 3, ago=ago)
    ada.run()
    assert figures(ada).proven_up_to is None, "nothing was compared yet"
    later(ada)
    document = reconcile(ada)
    assert (document.differences, document.exit_code) == ([], ExitCode.OK)
    assert document.counts() == {"customers": 1, "equal": 1, "different": 0, "left": 0, "reads": 2}
    (row,) = kept(ada)
    assert (row["ledger_total"], row["stripe_total"], row["read_count"], row["differences"]) == (9, 9, 2, [])
    assert (row["proven"], row["proven_until"]) == (True, ada.time.now() - timedelta(minutes=75))
    assert (figures(ada).proven_up_to, reads(ada)) == (row["proven_until"], 2)


def test_it_changes_no_event_and_no_usage(new_ada: World) -> None:
    lose(new_ada, "ada", 3)
    later(new_ada)
    foreign(new_ada, 9, at(new_ada, 2 * DAY))
    before = new_ada.events(), new_ada.rows("SELECT * FROM usage_events"), new_ada.stripe.events()
    assert reconcile(new_ada).exit_code is ExitCode.DIFFERENCE
    assert before == (new_ada.events(), new_ada.rows("SELECT * FROM usage_events"), new_ada.stripe.events())
    assert {request.operation for request in new_ada.stripe.requests()[-8:]} == {"event_summaries.list"}


def test_a_shortfall_is_narrowed_to_its_minute_with_the_command_that_mends_it(new_ada: World) -> None:
    lose(new_ada, "ada", 3, ago=DAY)
    lost = minute_of(new_ada.events()[0])
    for n in range(50):
        new_ada.usage("ada", 2, ago=DAY + n * MINUTE)
    new_ada.run()
    later(new_ada)
    document = reconcile(new_ada)
    difference = only_one(document)
    assert (difference.cause, difference.span) == (Cause.SHORTFALL, lost)
    assert (difference.ledger_total, difference.stripe_total) == (5, 2)
    assert difference.command is not None
    assert difference.command.startswith("meterctl ledger doubt --meter ai_suggestion --customer cus_ada --minute 2026")
    assert document.exit_code is ExitCode.DIFFERENCE
    assert document.counts()["reads"] < 12, "halving finds one minute in seven reads or fewer"


def test_a_shortfall_proves_nothing_from_its_day_on(new_ada: World) -> None:
    lose(new_ada, "ada", 3, ago=5 * DAY)
    new_ada.usage("ada", 2, ago=9 * DAY)
    new_ada.usage("ada", 2, ago=DAY)
    new_ada.run()
    later(new_ada)
    reconcile(new_ada)
    (row,) = kept(new_ada)
    assert (row["proven"], row["differences"][0]["cause"], len(row["differences"])) == (False, "shortfall", 1)
    assert figures(new_ada).proven_up_to == (new_ada.time.now() - 5 * DAY).replace(hour=0, minute=0)


def test_somebody_elses_events_are_found_where_the_ledger_has_none(ada: World) -> None:
    ada.usage("ada", 2, ago=2 * DAY)
    ada.run()
    foreign(ada, 7, at(ada, 5 * DAY))
    later(ada)
    document = reconcile(ada)
    difference = only_one(document)
    assert (difference.cause, difference.command) == (Cause.FOREIGN_WRITER, None)
    assert difference.span.length == MINUTE
    assert (difference.ledger_total, difference.stripe_total) == (0, 7)
    assert document.exit_code is ExitCode.DIFFERENCE


def test_a_shortfall_and_a_foreign_event_of_one_day_are_told_apart(new_ada: World) -> None:
    lose(new_ada, "ada", 3, ago=DAY)
    foreign(new_ada, 7, at(new_ada, DAY + HOUR))
    later(new_ada)
    found = {difference.cause: difference.stripe_total for difference in reconcile(new_ada).differences}
    assert found == {Cause.SHORTFALL: 0, Cause.FOREIGN_WRITER: 7}


@pytest.mark.parametrize(("stored", "shown"), [(True, [Cause.IN_DOUBT]), (False, [])])
def test_what_is_in_doubt_explains_what_stripe_has(ada: World, *, stored: bool, shown: list[Cause]) -> None:
    ada.usage("ada", 2, ago=2 * DAY)
    ada.run()
    ada.usage("ada", 3)
    ada.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER if stored else FaultKind.RESET, times=None))
    ada.run()
    later(ada)
    document = reconcile(ada)
    assert [difference.cause for difference in document.differences] == shown
    assert (document.exit_code, document.counts()["reads"]) == (ExitCode.OK, 2), "what is explained is not narrowed"
    assert kept(ada)[0]["proven"] is not stored


def test_what_is_held_explains_too(ada: World) -> None:
    ada.usage("ada", 3)
    ada.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    ada.run()
    ada.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'ambiguous'")
    later(ada)
    document = reconcile(ada)
    assert (only_one(document).cause, document.exit_code) == (Cause.HELD, ExitCode.OK)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("state = 'cancelled'", Cause.CANCELLED),
        (
            "state = 'rejected', error_code = 'resource_missing', accepted_at = NULL, settled_by = NULL",
            Cause.REJECTED_AFTERWARDS,
        ),
    ],
)
def test_what_stripe_should_not_count_is_named_and_a_persons(ada: World, change: str, cause: Cause) -> None:
    ada.usage("ada", 3)
    ada.run()
    ada.connection.execute(f"UPDATE meterctl.meter_events SET {change}")  # noqa: S608 -- a test's own words
    later(ada)
    document = reconcile(ada)
    assert (only_one(document).cause, document.exit_code) == (cause, ExitCode.DIFFERENCE)


def test_totals_that_lag_are_no_alarm_and_no_proof(ada: World) -> None:
    ada.stripe.set_options(summary_lag_s=75 * 60)
    ada.usage("ada", 3, ago=3 * HOUR)
    ada.usage("ada", 4, ago=DAY)
    ada.run()
    ada.time.advance(HOUR)
    document = reconcile(ada)
    assert {difference.cause for difference in document.differences} == {Cause.NOT_YET_CAUGHT_UP}
    assert (document.exit_code, kept(ada)[0]["proven"]) == (ExitCode.OK, False)
    later(ada)
    assert (reconcile(ada).differences, kept(ada)[1]["proven"]) == ([], True)


def test_an_event_accepted_after_the_comparison_takes_the_proof_back_to_its_minute(ada: World) -> None:
    ada.usage("ada", 3, ago=9 * DAY)
    ada.run()
    later(ada)
    reconcile(ada)
    ada.usage("ada", 4, ago=5 * DAY)
    ada.run()
    event = ada.events()[-1]
    assert figures(ada).proven_up_to == minute_of(event).start
    later(ada)
    reconcile(ada)
    assert figures(ada).proven_up_to == ada.time.now() - timedelta(minutes=75)


def test_a_customer_nobody_compared_keeps_the_meter_unproven(ada: World) -> None:
    ada.customer("bob")
    ada.usage("ada", 3, ago=5 * DAY)
    ada.usage("bob", 3, ago=2 * DAY)
    ada.run()
    later(ada)
    reconcile(ada, only=("cus_ada",))
    assert [row["customer"] for row in kept(ada)] == ["cus_ada"]
    bobs = minute_of(next(event for event in ada.events() if event["customer"] == "cus_bob"))
    assert figures(ada).proven_up_to == bobs.start


def test_a_comparison_of_a_part_proves_no_more_and_disproves(ada: World) -> None:
    ada.usage("ada", 3, ago=9 * DAY)
    ada.run()
    later(ada)
    reconcile(ada)
    proven = figures(ada).proven_up_to
    ada.time.advance(DAY)
    part = Span(start=at(ada, 6 * DAY), end=at(ada, 5 * DAY))
    reconcile(ada, span=part, only=("cus_ada",))
    assert (figures(ada).proven_up_to, len(kept(ada))) == (proven, 2)
    foreign(ada, 1, part.start + 90 * MINUTE)
    later(ada)
    assert reconcile(ada, span=part, only=("cus_ada",)).exit_code is ExitCode.DIFFERENCE
    found = figures(ada).proven_up_to
    assert found is not None
    assert part.start - DAY < found <= part.start + 90 * MINUTE


@pytest.mark.parametrize(("seconds", "day"), [(-1, -1), (0, 0)])
def test_midnight_belongs_to_the_new_day(ada: World, seconds: int, day: int) -> None:
    midnight = (ada.time.now() - DAY).replace(hour=0)
    ada.usage("ada", 3, created_at=midnight + timedelta(seconds=seconds))
    ada.run()
    later(ada)
    assert reconcile(ada).differences == []
    for n in (-1, 0):
        document = reconcile(ada, span=Span(start=midnight + n * DAY, end=midnight + n * DAY + DAY))
        found = [comparison.stripe_total for side in document.sides for comparison in side.comparisons]
        assert (document.differences, found) == ([], [3] if n == day else [])


def test_two_meters_are_compared_each_by_itself(ada: World) -> None:
    """The second one counts: each event weighs one. It lacks one."""
    ada.stripe.create_meter(event_name="runs", formula="count")
    ada.usage("ada", 3, ago=DAY)
    ada.run()
    ada.connection.execute(
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, state, accepted_at, settled_by, collected_at, livemode, account, last_attempt_at)"
        " SELECT 'runs', 'runs', 'other', customer, 7, 7, occurred_at, sent_timestamp, payload, 'accepted',"
        " accepted_at, 'answer', collected_at, livemode, account, last_attempt_at FROM meterctl.meter_events"
    )
    later(ada)
    assert reconcile(ada).differences == [], "the second meter is not configured"
    ada.config |= {f"meters.runs.{name}": value for name, value in COUNTING_METER.items()}
    document = reconcile(ada)
    difference = only_one(document)
    assert (difference.event_name, difference.ledger_total, difference.stripe_total) == ("runs", 1, 0)
    assert [row["event_name"] for row in kept(ada)] == ["ai_suggestion", "ai_suggestion", "runs"]


def test_a_counting_meter_weighs_each_event_one(ada: World) -> None:
    ada.stripe.create_meter(event_name="runs", formula="count")
    ada.config |= {
        "meters.ai_suggestion.event_name": "runs",
        "meters.ai_suggestion.formula": "count",
        "meters.ai_suggestion.value": None,
    }
    for _ in range(3):
        ada.usage("ada", 5)
    ada.run()
    later(ada)
    assert reconcile(ada).differences == []
    assert kept(ada)[0]["ledger_total"] == 3


def test_decimals_that_no_double_holds_are_equal(ada: World) -> None:
    ada.config |= {"meters.ai_suggestion.values": "decimal"}
    for n in range(30):
        ada.usage("ada", Decimal("0.1") * (n + 1), ago=n * DAY + 2 * HOUR)
        ada.usage("ada", Decimal("0.7"), ago=n * DAY + 2 * HOUR)
    ada.run()
    later(ada)
    assert reconcile(ada).differences == []


def test_customers_whose_events_were_all_rejected_are_compared(ada: World) -> None:
    """Stripe does not know the first, and has what somebody else sent for the second."""
    ada.customer("eve", known=False)
    ada.usage("eve", 3, ago=DAY)
    ada.run()
    assert ada.states() == ["rejected"]
    later(ada)
    document = reconcile(ada)
    assert (document.differences, document.counts()["equal"]) == ([], 1)
    ada.stripe.create_customer("cus_eve")
    foreign(ada, 2, at(ada, DAY), customer="cus_eve")
    assert only_one(reconcile(ada)).cause is Cause.FOREIGN_WRITER


def test_a_customer_stripe_knows_no_more_is_named_once(new_ada: World) -> None:
    new_ada.stripe.set_options(unknown_customer="later")
    new_ada.usage("ada", 3, ago=DAY)
    new_ada.usage("ada", 3, ago=5 * DAY)
    new_ada.run()
    later(new_ada)
    document = reconcile(new_ada)
    difference = only_one(document)
    assert (difference.cause, difference.span, difference.ledger_total) == (
        Cause.UNKNOWN_CUSTOMER,
        document.plan.span,
        6,
    )
    assert (document.exit_code, document.counts()["reads"]) == (ExitCode.DIFFERENCE, 2)


def test_late_events_are_counted_for_information(ada: World) -> None:
    ada.customer("eve", current_period_end=at(ada, 3 * HOUR), current_period_start=at(ada, 30 * DAY))
    ada.usage("eve", 3, ago=4 * HOUR)
    ada.run()
    later(ada)
    document = reconcile(ada)
    assert (document.sides[0].late_count, document.sides[0].late_units, document.exit_code) == (1, 3, ExitCode.OK)


def test_what_is_being_sent_is_no_alarm(ada: World) -> None:
    ada.usage("ada", 3, ago=3 * HOUR)
    ada.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    ada.run()
    ada.connection.execute(
        "UPDATE meterctl.meter_events SET state = 'sending', claimed_from = 'in_doubt', claimed_at = now(), run_id = 1"
    )
    later(ada)
    document = reconcile(ada)
    assert (only_one(document).cause, document.exit_code) == (Cause.NOT_YET_CAUGHT_UP, ExitCode.OK)


def test_a_small_rest_of_a_large_total_is_not_measured_too_finely(ada: World) -> None:
    """The hour's total is a double: what is left of it for the second half is off by more than that half's own."""
    ada.config |= {"meters.ai_suggestion.values": "decimal"}
    hour = at(ada, DAY)
    ada.usage("ada", Decimal("123456789.123456"), created_at=hour)
    ada.usage("ada", Decimal("0.000000123456"), created_at=hour + 50 * MINUTE)
    ada.run()
    foreign(ada, 1, hour)
    later(ada)
    difference = only_one(reconcile(ada))
    assert (difference.cause, difference.span) == (Cause.FOREIGN_WRITER, Span(start=hour, end=hour + MINUTE))


def test_what_lies_before_the_only_comparison_is_unproven(ada: World) -> None:
    ada.usage("ada", 3, ago=9 * DAY)
    ada.usage("ada", 3, ago=DAY)
    ada.run()
    later(ada)
    reconcile(ada, span=Span(start=at(ada, 3 * DAY), end=at(ada, 2 * HOUR)))
    assert figures(ada).proven_up_to == minute_of(ada.events()[0]).start
