"""Levels: one event for each customer and step, zero included; only the period's newest is billed."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest

from meterctl.actions.preview import preview
from meterctl.core.level import LevelRequest
from meterctl.errors import ExitCode, InputError, UsageError
from meterctl.postgres.connect import connect
from meterctl.postgres.ledger_admin import retry
from meterctl.postgres.sources import Sources
from meterctl.sandbox.local_stripe import Fault, FaultKind
from metered_devices import GAUGE, add_sensors, level, open_devices, organisation, sent, switch_off
from world import World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def devices(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as world:
        yield world


def states(world: World) -> list[str]:
    return [event["state"] for event in world.events()]


def test_each_customer_has_its_level_at_the_steps_start(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    organisation(devices, "globex", sensors=1)
    devices.time.advance(timedelta(minutes=25))
    result = devices.run()
    step = devices.time.now().replace(minute=0)
    assert (result.exit_code, result.totals.reported) == (ExitCode.OK, 2)
    assert sent(devices, GAUGE) == [("cus_acme", Decimal(3), step), ("cus_globex", Decimal(1), step)]


def test_the_same_step_again_is_the_same_event(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    devices.run()
    add_sensors(devices, "acme", 2)
    devices.time.advance(timedelta(minutes=30))
    assert devices.run().totals.total == 0
    devices.time.advance(timedelta(minutes=30))
    devices.run()
    assert [value for _, value, _ in sent(devices, GAUGE)] == [Decimal(3), Decimal(5)]


def test_subjects_of_one_customer_are_summed(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    organisation(devices, "branch", sensors=2, pays=False)
    devices.insert("subscriptions", {"organization_id": "branch", "stripe_customer_id": "cus_acme"})
    devices.run()
    assert level(devices, "cus_acme") == 5
    assert devices.events()[0]["subject"] is None


def test_whoever_had_a_level_and_has_none_now_has_zero(devices: World) -> None:
    for name in ("acme", "globex", "initech"):
        organisation(devices, name, sensors=2)
    devices.run()
    switch_off(devices, "acme")
    devices.time.advance(HOUR)
    assert devices.run().exit_code is ExitCode.OK
    assert (level(devices, "cus_acme"), level(devices, "cus_globex")) == (0, 2)
    devices.time.advance(HOUR)
    devices.run()
    zeros = [one for one in sent(devices, GAUGE) if one[0] == "cus_acme" and not one[1]]
    assert len(zeros) == 1, "a level that stays 0 is not news"


def test_most_levels_falling_to_zero_at_once_are_held_until_somebody_says_so(devices: World) -> None:
    for name in ("acme", "globex", "initech"):
        organisation(devices, name, sensors=2)
    devices.run()
    devices.connection.execute("UPDATE sensors SET is_active = organization_id = 'initech'")
    devices.time.advance(HOUR)
    result = devices.run()
    assert (result.exit_code, result.totals.held) == (ExitCode.PROBLEMS, 2)
    assert "--accept-zeros" in result.totals.problems["fell_to_zero"].hint
    assert (level(devices, "cus_acme"), level(devices, "cus_initech")) == (2, 2)
    devices.time.advance(HOUR)
    assert devices.run(level=LevelRequest(accept_zeros=True)).exit_code is ExitCode.OK
    assert (level(devices, "cus_acme"), level(devices, "cus_globex")) == (0, 0)


def test_levels_that_come_back_are_never_sent_as_zero(devices: World) -> None:
    organisation(devices, "acme", sensors=2)
    devices.run()
    switch_off(devices, "acme")
    devices.time.advance(HOUR)
    devices.run()
    devices.connection.execute("UPDATE sensors SET is_active = true")
    devices.time.advance(HOUR)
    assert devices.run().exit_code is ExitCode.OK
    assert [value for _, value, _ in sent(devices, GAUGE)] == [2, 2]


def test_without_a_subscription_it_is_a_skip_and_without_a_customer_id_a_problem(devices: World) -> None:
    organisation(devices, "free", sensors=2, pays=False)
    organisation(devices, "acme", sensors=1, stripe_customer_id=None)
    result = devices.run()
    assert (result.totals.skipped, result.totals.rejected) == (1, 1)
    assert result.totals.problems["local:no_customer_id"].sample_ids == ["acme"]
    assert devices.events() == []


def test_a_level_never_lies_before_its_periods_start(devices: World) -> None:
    """The old period's last level stays what it was."""
    start = devices.time.now()
    turn = start + HOUR + timedelta(minutes=20)
    organisation(
        devices, "acme", sensors=3, current_period_start=start - 30 * DAY, current_period_end=turn, started_at=None
    )
    devices.run()
    add_sensors(devices, "acme", 4)
    devices.connection.execute(
        "UPDATE subscriptions SET current_period_start = %s, current_period_end = %s", [turn, turn + 30 * DAY]
    )
    devices.time.advance(HOUR + timedelta(minutes=45))
    devices.run()
    assert sent(devices, GAUGE) == [("cus_acme", Decimal(3), start), ("cus_acme", Decimal(7), turn)]


def test_a_zero_never_lies_before_its_periods_start(devices: World) -> None:
    start = devices.time.now()
    turn = start + HOUR + timedelta(minutes=20)
    organisation(devices, "acme", sensors=3, current_period_start=start - 30 * DAY, current_period_end=turn)
    devices.run()
    switch_off(devices, "acme")
    devices.connection.execute(
        "UPDATE subscriptions SET current_period_start = %s, current_period_end = %s", [turn, turn + 30 * DAY]
    )
    devices.time.advance(HOUR + timedelta(minutes=45))
    devices.run(level=LevelRequest(accept_zeros=True))
    assert {(value, at) for _, value, at in sent(devices, GAUGE)} == {(3, start), (0, turn)}


def test_history_is_reported_for_its_own_instant(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    at = devices.time.now() - 2 * DAY
    assert devices.run(level=LevelRequest(at=at)).exit_code is ExitCode.OK
    assert sent(devices, GAUGE) == [("cus_acme", Decimal(3), at)]


@pytest.mark.parametrize("ago", [36 * DAY, -HOUR])
def test_history_outside_of_35_days_is_refused(devices: World, ago: timedelta) -> None:
    organisation(devices, "acme", sensors=3)
    with pytest.raises(UsageError, match="35 days"):
        devices.run(level=LevelRequest(at=devices.time.now() - ago))
    assert devices.events() == []


def test_history_behind_a_newer_level_is_refused_unless_forced(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    devices.run()
    at = devices.time.now() - DAY
    with pytest.raises(InputError, match="cus_acme has a level of a later instant"):
        devices.run(level=LevelRequest(at=at))
    add_sensors(devices, "acme", 1)
    assert devices.run(level=LevelRequest(at=at, insisted=True)).totals.reported == 1
    assert sent(devices, GAUGE)[-1] == ("cus_acme", Decimal(4), at)
    assert level(devices, "cus_acme") == 3


def test_an_explicit_level_replaces_what_the_table_says_of_one_subject(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    organisation(devices, "branch", sensors=2, pays=False)
    devices.insert("subscriptions", {"organization_id": "branch", "stripe_customer_id": "cus_acme"})
    organisation(devices, "globex", sensors=1)
    devices.run(level=LevelRequest(subject="branch", level=Decimal("10.7")))
    assert [(who, value) for who, value, _ in sent(devices, GAUGE)] == [("cus_acme", 13)]


def test_an_explicit_level_needs_no_row_and_is_not_taken_twice_in_a_step(devices: World) -> None:
    organisation(devices, "acme")
    devices.run(level=LevelRequest(subject="acme", level=Decimal(5)))
    assert level(devices, "cus_acme") == 5
    assert devices.run(level=LevelRequest(subject="acme", level=Decimal(5))).exit_code is ExitCode.OK
    with pytest.raises(InputError, match="was reported with 5 for this step"):
        devices.run(level=LevelRequest(subject="acme", level=Decimal(6)))
    assert level(devices, "cus_acme") == 5


def test_an_explicit_level_of_nobody_is_a_skip(devices: World) -> None:
    assert devices.run(level=LevelRequest(subject="nobody", level=Decimal(5))).totals.skipped == 1
    assert devices.events() == []


def test_an_old_doubt_about_a_level_is_sent_again_if_nothing_newer_was(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    devices.stripe.add_fault(Fault(kind=FaultKind.RESET, times=None))
    devices.run()
    assert states(devices) == ["in_doubt"]
    devices.stripe.clear_faults()
    switch_off(devices, "acme")
    devices.connection.execute("UPDATE subscriptions SET ended_at = %s", [devices.time.now() + timedelta(minutes=30)])
    devices.time.advance(30 * HOUR)
    assert devices.run().exit_code is ExitCode.OK
    assert (states(devices), level(devices, "cus_acme")) == (["accepted"], 3)


def test_a_doubtful_level_does_not_follow_a_newer_one(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    devices.stripe.add_fault(Fault(kind=FaultKind.RESET, times=10))
    devices.run()
    devices.stripe.clear_faults()
    add_sensors(devices, "acme", 1)
    devices.time.advance(HOUR)
    devices.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'foreign'")
    devices.run()
    devices.connection.execute("UPDATE meterctl.meter_events SET held_reason = NULL")
    devices.run()
    first, second = devices.events()
    assert (first["state"], second["state"]) == ("superseded", "accepted")
    assert [value for _, value, _ in sent(devices, GAUGE)] == [4]


def test_a_level_issued_again_does_not_follow_a_newer_one_that_stripe_reported(devices: World) -> None:
    """A report is no proof: the newer level may count, and whatever arrives last may be what is billed."""
    organisation(devices, "acme", sensors=3)
    devices.stripe.reject_later(event_name=GAUGE)
    devices.run()
    add_sensors(devices, "acme", 1)
    devices.time.advance(HOUR)
    devices.run()
    dropped, counted = devices.events()
    devices.stripe.report_error(counted["identifier"])
    devices.pull()
    assert states(devices) == ["rejected", "rejected"]
    issue_again(devices, dropped["id"])
    devices.run()
    assert [value for _, value, _ in sent(devices, GAUGE)] == [4]
    issue_again(devices, counted["id"])
    devices.run()
    assert states(devices) == ["replaced", "replaced", "superseded", "accepted"]
    assert [value for _, value, _ in sent(devices, GAUGE)] == [4, 4]


def issue_again(devices: World, event_id: int) -> None:
    with connect(devices.database_url) as connection:
        source = Sources(connection=connection, settings=devices.settings()).of(GAUGE)
        assert retry(connection, [event_id], source, GAUGE, "mended", devices.time.now()).done_ids == (event_id,)


def test_a_doubtful_level_of_an_earlier_period_is_sent_all_the_same(devices: World) -> None:
    """Each period bills its own last level."""
    start = devices.time.now()
    turn = start + timedelta(minutes=30)
    organisation(devices, "acme", sensors=3, current_period_start=start - 30 * DAY, current_period_end=turn)
    devices.stripe.add_fault(Fault(kind=FaultKind.RESET, times=10))
    devices.run()
    devices.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'foreign'")
    devices.stripe.clear_faults()
    devices.connection.execute(
        "UPDATE subscriptions SET current_period_start = %s, current_period_end = %s", [turn, turn + 30 * DAY]
    )
    devices.time.advance(30 * HOUR)
    devices.run()
    devices.connection.execute("UPDATE meterctl.meter_events SET held_reason = NULL")
    devices.run()
    assert states(devices) == ["accepted", "accepted"]
    assert [at for _, _, at in sent(devices, GAUGE)] == [start, start + 30 * HOUR]


def test_a_doubtful_level_too_old_to_be_sent_again_is_a_persons_to_decide(devices: World) -> None:
    organisation(devices, "acme", sensors=3, ended_at=devices.time.now() + HOUR)
    devices.stripe.add_fault(Fault(kind=FaultKind.RESET, times=None))
    devices.run()
    devices.time.advance(36 * DAY)
    result = devices.run()
    assert (states(devices), result.exit_code) == (["in_doubt"], ExitCode.PROBLEMS)
    assert [event["held_reason"] for event in devices.events()] == ["too_old"]


def test_the_dry_run_says_what_a_run_sends(devices: World) -> None:
    organisation(devices, "acme", sensors=3)
    organisation(devices, "free", sensors=3, pays=False)
    plan = preview(GAUGE, devices.source(GAUGE), devices.time.now(), recent=None)
    assert (plan.events, plan.units, plan.customers, plan.tally.skipped) == (1, 3, 1, 1)
    assert devices.events() == []
