"""A past span of usage: nothing else is collected, delivered or changed, and what is shown is what is done."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from backfilling import GRACE, backfilled, planned
from meterctl.actions.backfill import require_as_shown, require_past
from meterctl.core.scope import UsageSpan
from meterctl.errors import ExitCode, UnavailableError, UsageError
from meterctl.sandbox.local_stripe import Fault, FaultKind
from metered_devices import COUNTER, GAUGE, add_sensors, level, open_devices, organisation, record, sent, switch_off
from world import START, World

ROWS = "ai_suggestion"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)

SINCE, UNTIL = START - 5 * DAY, START - 2 * DAY
BEFORE, WITHIN, AFTER = SINCE - HOUR, SINCE + HOUR, UNTIL + HOUR


def use(world: World, *instants: datetime, user: str = "ada", quantity: int = 1) -> list[str]:
    return [str(world.usage(user, quantity, created_at=at)) for at in instants]


def stamped(world: World) -> set[str]:
    found = world.rows("SELECT id::text FROM usage_events WHERE stripe_reported_at IS NOT NULL")
    return {row["id"] for row in found}


def states_by_row(world: World) -> dict[str, str]:
    return {event["source_row_id"]: event["state"] for event in world.events()}


# Rows


def test_the_span_is_half_open_and_nothing_else_is_collected(world: World) -> None:
    world.customer("ada")
    within = use(world, SINCE, WITHIN, UNTIL - MICROSECOND)
    use(world, SINCE - MICROSECOND, UNTIL, AFTER)
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.events, shown.plan.units, shown.plan.customers) == (3, 3, 1)
    assert (result.exit_code, result.totals.reported) == (ExitCode.OK, 3)
    assert stamped(world) == states_by_row(world).keys() == set(within)
    assert world.run().totals.reported == 3
    world.assert_exact()


def test_pending_events_outside_of_the_span_go_on_waiting(world: World) -> None:
    world.customer("ada")
    before, within, after = use(world, SINCE - MICROSECOND, SINCE, UNTIL)
    world.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, times=1))
    world.run()
    assert set(world.states()) == {"pending"}
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.events, result.totals.total, result.exit_code) == (1, 1, ExitCode.OK)
    assert states_by_row(world) == {before: "pending", within: "accepted", after: "pending"}


def test_events_outside_of_the_span_do_not_expire_and_their_doubts_are_not_settled(world: World) -> None:
    world.customer("ada")
    old, doubted, within = use(world, START - 34 * DAY, AFTER, WITHIN)
    world.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, times=1))
    world.run(row_ids=(old,))
    world.stripe.add_fault(Fault(kind=FaultKind.RESET, times=None))
    world.run(row_ids=(doubted,))
    world.stripe.clear_faults()
    assert states_by_row(world) == {old: "pending", doubted: "in_doubt"}
    world.time.advance(2 * DAY)
    backfilled(world, ROWS, SINCE, UNTIL)
    assert states_by_row(world) == {old: "pending", doubted: "in_doubt", within: "accepted"}
    assert world.rows("SELECT * FROM meterctl.settlements") == []


def test_a_row_without_a_time_is_in_no_span(world: World) -> None:
    world.connection.execute("ALTER TABLE usage_events ALTER created_at DROP NOT NULL")
    world.customer("ada")
    use(world, WITHIN)
    world.usage("ada", created_at=None)
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.tally.rejected, result.totals.total, len(world.events())) == (0, 1, 1)


def test_it_counts_what_is_reported_whoever_reported_it(world: World) -> None:
    world.customer("ada")
    ours, unstamped, _ = use(world, WITHIN, WITHIN, WITHIN)
    world.run(row_ids=(ours,))
    world.run(row_ids=(unstamped,))
    world.connection.execute("UPDATE usage_events SET stripe_reported_at = NULL WHERE id = %s", [int(unstamped)])
    theirs = world.usage("ada", created_at=WITHIN, stripe_reported_at=BEFORE)
    world.usage("ada", created_at=AFTER, stripe_reported_at=AFTER)
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.already_reported, shown.plan.events, result.totals.reported) == (3, 1, 1)
    row = world.rows(f"SELECT stripe_reported_at FROM usage_events WHERE id = {theirs}")[0]  # noqa: S608 -- a number
    assert row["stripe_reported_at"] == BEFORE, "what a predecessor reported is never touched"
    world.assert_exact()


def test_what_stripe_takes_no_more_is_counted_and_left(world: World) -> None:
    world.customer("ada")
    use(world, START - 36 * DAY)
    world.run()
    assert world.states() == ["expired"]
    use(world, START - 80 * DAY, START - 35 * DAY + timedelta(minutes=30))
    use(world, START - 80 * DAY, user="free")
    use(world, WITHIN)
    shown, result = backfilled(world, ROWS, START - 90 * DAY, UNTIL)
    assert (shown.too_old, shown.plan.events, shown.already_reported) == (3, 1, 0)
    assert (result.totals.expired, result.totals.reported, len(world.events())) == (0, 1, 2)


def test_a_span_that_is_too_old_altogether_has_nothing_to_send(world: World) -> None:
    world.customer("ada")
    use(world, START - 50 * DAY)
    shown, result = backfilled(world, ROWS, START - 60 * DAY, START - 40 * DAY)
    assert (shown.too_old, shown.plan.events, result.totals.total) == (1, 0, 0)
    assert world.events() == []


def test_it_tells_what_misses_its_invoice(world: World) -> None:
    world.customer("ada", current_period_start=WITHIN, current_period_end=START - GRACE)
    world.customer("bob", current_period_start=WITHIN, current_period_end=START - GRACE - SECOND)
    use(world, WITHIN, WITHIN)
    use(world, WITHIN, WITHIN + HOUR, WITHIN - SECOND, user="bob")
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.events, shown.plan.late, result.totals.late) == (5, 3, 3)


def test_free_and_malformed_usage_is_shown_as_a_report_shows_it(world: World) -> None:
    world.customer("ada")
    use(world, WITHIN, user="free")
    world.usage("ada", "NaN", created_at=WITHIN)
    world.usage("ada", "NaN", created_at=AFTER)
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.events, shown.plan.tally.skipped, shown.plan.tally.rejected) == (0, 1, 1)
    assert (result.totals.skipped, result.totals.rejected) == (1, 1)


def test_after_an_outage_it_takes_up_what_is_left_of_the_span(world: World) -> None:
    for name in ("ada", "bob"):
        world.customer(name)
        use(world, WITHIN, WITHIN + HOUR, AFTER, user=name)
    world.stripe.add_fault(Fault(kind=FaultKind.UNAUTHORIZED, nth=3, times=None))
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.events, result.exit_code, result.totals.reported) == (4, ExitCode.NOT_PERMITTED, 2)
    world.stripe.clear_faults()
    again, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (again.plan.events, again.already_reported, result.totals.reported) == (2, 2, 2)
    assert world.stripe_total() == 4
    world.assert_exact()


def test_usage_that_changes_after_it_was_shown_is_not_sent(world: World) -> None:
    world.customer("ada")
    use(world, WITHIN)
    shown, _ = planned(world, ROWS, SINCE, UNTIL)
    source = world.source(ROWS)
    use(world, AFTER, BEFORE)
    require_as_shown(shown, source, world.time.now(), grace=GRACE)
    use(world, WITHIN)
    with pytest.raises(UnavailableError, match="now 2 events, 2 units"):
        require_as_shown(shown, source, world.time.now(), grace=GRACE)


def test_rows_before_the_meters_since_are_counted_and_left(world: World) -> None:
    world.config = {"meters.ai_suggestion.since": WITHIN}
    world.customer("ada")
    use(world, SINCE, WITHIN - MICROSECOND, WITHIN)
    world.usage("ada", created_at=SINCE, stripe_reported_at=SINCE)
    shown, result = backfilled(world, ROWS, SINCE, UNTIL)
    assert (shown.plan.before_since, shown.plan.events, shown.already_reported) == (2, 1, 1)
    assert result.totals.reported == 1


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (SINCE, SINCE, "not before"),
        (UNTIL, SINCE, "not before"),
        (SINCE, START + SECOND, "lies ahead"),
    ],
)
def test_a_span_that_is_empty_or_not_over_is_refused(since: datetime, until: datetime, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        require_past(UsageSpan(since=since, until=until), START)
    require_past(UsageSpan(since=SINCE, until=START), START)


# Counters


@pytest.fixture
def counter(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as devices:
        devices.config |= {f"meters.{GAUGE}.enabled": False}
        yield devices


def units(world: World) -> list[tuple[str, int, datetime]]:
    return [(who, int(value), at) for who, value, at in sent(world, COUNTER)]


def uncollected(world: World) -> int:
    return int(world.rows("SELECT count(*) AS n FROM meterctl.usage_outbox WHERE event_id IS NULL")[0]["n"])


def test_volumes_of_the_span_alone_are_sent(counter: World) -> None:
    for name in ("acme", "globex"):
        organisation(counter, name)
    record(counter, "acme", 1, at=SINCE - MICROSECOND)
    record(counter, "acme", 2, at=SINCE)
    record(counter, "globex", 4, at=UNTIL - MICROSECOND)
    record(counter, "acme", 8, at=UNTIL)
    shown, result = backfilled(counter, COUNTER, SINCE, UNTIL)
    assert (shown.plan.events, shown.plan.units, shown.plan.customers) == (2, 6, 2)
    assert (result.exit_code, result.totals.units) == (ExitCode.OK, 6)
    assert units(counter) == [("cus_acme", 2, SINCE + HOUR - SECOND), ("cus_globex", 4, UNTIL - SECOND)]
    assert uncollected(counter) == 2
    again, _ = planned(counter, COUNTER, SINCE, UNTIL)
    assert (again.plan.events, again.already_reported) == (0, 2)
    counter.run()
    assert sum(value for _, value, _ in units(counter)) == 15
    counter.assert_accepted_is_billed()


def test_a_span_may_begin_and_end_within_an_hour(counter: World) -> None:
    organisation(counter, "acme")
    since, until = SINCE + timedelta(minutes=20), SINCE + timedelta(minutes=40)
    for minute in (10, 20, 30, 40):
        record(counter, "acme", minute, at=SINCE + timedelta(minutes=minute))
    shown, _ = backfilled(counter, COUNTER, since, until)
    assert (shown.plan.units, units(counter)) == (50, [("cus_acme", 50, SINCE + HOUR - SECOND)])


def test_an_hour_that_is_not_closed_waits(counter: World) -> None:
    organisation(counter, "acme")
    record(counter, "acme", 1, at=START - 2 * HOUR)
    record(counter, "acme", 2, at=START - SECOND)
    shown, result = backfilled(counter, COUNTER, START - DAY, START)
    assert (shown.plan.units, result.totals.units) == (1, 1)
    counter.time.advance(timedelta(minutes=5))
    shown, result = backfilled(counter, COUNTER, START - DAY, START)
    assert (shown.plan.units, result.totals.units) == (2, 2)


def test_volumes_that_wait_outside_of_the_span_go_on_waiting(counter: World) -> None:
    organisation(counter, "acme")
    for at in (BEFORE, WITHIN, AFTER):
        record(counter, "acme", 1, at=at)
    counter.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, times=1))
    counter.run()
    shown, _ = backfilled(counter, COUNTER, SINCE, UNTIL)
    assert shown.plan.events == 1
    assert [event["state"] for event in counter.events()] == ["pending", "accepted", "pending"]


def test_volumes_that_are_too_old_are_counted_and_left(counter: World) -> None:
    organisation(counter, "acme")
    record(counter, "acme", 1, at=START - 36 * DAY)
    counter.run()
    record(counter, "acme", 1, at=START - 37 * DAY)
    record(counter, "acme", 1, at=WITHIN)
    shown, _ = backfilled(counter, COUNTER, START - 40 * DAY, UNTIL)
    assert (shown.too_old, shown.plan.events) == (2, 1)
    assert [event["state"] for event in counter.events()] == ["expired", "accepted"]


def test_usage_that_is_done_is_not_tidied_away(counter: World) -> None:
    organisation(counter, "acme")
    record(counter, "acme", 1, at=WITHIN)
    counter.run()
    counter.time.advance(8 * DAY)
    backfilled(counter, COUNTER, SINCE, UNTIL)
    assert len(counter.rows("SELECT * FROM meterctl.usage_outbox")) == 1


# Gauges


@pytest.fixture
def gauge(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as devices:
        devices.config |= {f"meters.{COUNTER}.enabled": False}
        yield devices


def test_levels_are_sent_once_for_the_last_step_of_the_span(gauge: World) -> None:
    organisation(gauge, "acme", sensors=3)
    organisation(gauge, "free", sensors=1, pays=False)
    shown, result = backfilled(gauge, GAUGE, SINCE, UNTIL)
    assert (shown.plan.events, shown.plan.units, shown.plan.tally.skipped) == (1, 3, 1)
    assert result.totals.reported == 1
    assert sent(gauge, GAUGE) == [("cus_acme", 3, UNTIL - HOUR)]
    again, result = backfilled(gauge, GAUGE, SINCE, UNTIL)
    assert (again.plan.events, again.already_reported, result.totals.reported) == (0, 1, 0)


def test_the_last_step_begins_before_the_spans_end(gauge: World) -> None:
    organisation(gauge, "acme", sensors=3)
    backfilled(gauge, GAUGE, SINCE, UNTIL + SECOND)
    assert sent(gauge, GAUGE) == [("cus_acme", 3, UNTIL)]


def test_whoever_has_a_level_in_the_span_gets_no_other(gauge: World) -> None:
    """The table knows no more of that day than what was reported then."""
    organisation(gauge, "acme", sensors=3)
    gauge.run()
    gauge.time.advance(DAY)
    organisation(gauge, "globex", sensors=5)
    add_sensors(gauge, "acme", 1)
    shown, _ = backfilled(gauge, GAUGE, START, START + DAY)
    assert (shown.plan.events, shown.plan.units, shown.already_reported) == (1, 5, 1)
    assert sent(gauge, GAUGE) == [("cus_acme", 3, START), ("cus_globex", 5, START + 23 * HOUR)]


def test_a_level_behind_a_newer_one_is_left_out_and_one_of_an_earlier_period_is_not(gauge: World) -> None:
    turn = START - DAY
    organisation(gauge, "acme", sensors=3, current_period_start=turn, current_period_end=turn + 30 * DAY)
    organisation(gauge, "globex", sensors=5)
    gauge.run()
    shown, result = backfilled(gauge, GAUGE, SINCE, UNTIL)
    assert (shown.plan.events, shown.plan.late, shown.newer, result.totals.late) == (1, 1, 1, 1)
    assert ("cus_acme", 3, UNTIL - HOUR) in sent(gauge, GAUGE)
    assert len(sent(gauge, GAUGE)) == 3


def test_a_level_that_waits_outside_of_the_span_goes_on_waiting(gauge: World) -> None:
    organisation(gauge, "acme", sensors=3)
    gauge.stripe.add_fault(Fault(kind=FaultKind.FORBIDDEN, times=1))
    gauge.run()
    gauge.time.advance(3 * DAY)
    add_sensors(gauge, "acme", 2)
    shown, _ = backfilled(gauge, GAUGE, START + DAY, START + 2 * DAY)
    assert shown.plan.events == 1
    assert [event["state"] for event in gauge.events()] == ["pending", "accepted"]
    assert level(gauge, "cus_acme") == 5


def test_a_doubtful_level_outside_of_the_span_is_not_given_up(gauge: World) -> None:
    organisation(gauge, "acme", sensors=3)
    gauge.stripe.add_fault(Fault(kind=FaultKind.RESET, times=None))
    gauge.run()
    gauge.stripe.clear_faults()
    gauge.time.advance(36 * DAY)
    backfilled(gauge, GAUGE, START + 34 * DAY, START + 35 * DAY)
    assert [(event["state"], event["held_reason"]) for event in gauge.events()] == [
        ("in_doubt", None),
        ("accepted", None),
    ]


def test_most_levels_falling_at_once_are_shown_and_held(gauge: World) -> None:
    organisation(gauge, "acme", sensors=3)
    gauge.run()
    switch_off(gauge, "acme")
    gauge.time.advance(3 * DAY)
    shown, result = backfilled(gauge, GAUGE, START + DAY, START + 2 * DAY)
    assert (shown.plan.events, shown.plan.tally.held, result.totals.held) == (0, 1, 1)


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (START - 50 * timedelta(minutes=1), START - SECOND, "no step"),
        (START - 50 * DAY, START - 36 * DAY, "too old"),
    ],
)
def test_a_span_without_a_step_that_can_be_sent_is_refused(
    gauge: World, since: datetime, until: datetime, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        planned(gauge, GAUGE, since, until)
