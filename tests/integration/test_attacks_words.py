"""What a run says about itself: nothing is passed over in silence, nothing is said twice."""

from datetime import timedelta

import pytest

from meterctl.cli.job_retries import with_job_retries
from meterctl.core.model import MeterEvent, Outcome
from meterctl.errors import ExitCode
from meterctl.render.report import ReportDocument
from meterctl.sandbox.local_stripe import Fault, FaultKind
from several_meters import DAY, HOUR, run
from world import World


def test_a_limited_run_that_sent_nothing_does_not_say_all_is_well(world: World) -> None:
    """A limit excuses what lies behind it, not claims that came back unsent."""
    world.customer("ada")
    world.usage("ada", 3)
    world.run_after_claim = lambda: world.time.advance(HOUR)
    result = world.run(limit=10)
    assert (result.totals.reported, result.totals.remaining) == (0, 1)
    assert result.exit_code is ExitCode.UNAVAILABLE


def test_a_row_asked_for_is_reported_whatever_else_is_due(world: World) -> None:
    """`--row X --limit 1` while another event waits in the ledger."""
    world.customer("ada")
    world.customer("bob")
    world.usage("ada", 1)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    row = world.usage("bob", 5)
    result = run(world, row_ids=(str(row),), limit=1)
    assert (result.totals.reported, world.stripe.totals()) == (1, {("ai_suggestion", "cus_bob"): 5})


def test_problems_of_a_run_that_died_are_news_to_the_next(world: World) -> None:
    """The run that found a bad row was killed before it could say so."""
    world.customer("ada")
    world.usage("ada", "NaN")
    world.usage("ada", 3)

    class Killed(BaseException):
        pass

    class Dies:
        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:  # noqa: ARG002 -- the port's
            raise Killed

    world.wrap_events = lambda _: Dies()
    with pytest.raises(Killed):
        world.run()
    world.wrap_events = lambda events: events
    assert world.run().exit_code is ExitCode.PROBLEMS


def test_a_retried_job_counts_what_is_held_once(world: World) -> None:
    """The same held event is seen by each attempt of the job."""
    world.customer("ada")
    world.usage("ada", 3)
    for nth in range(1, 6):
        world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, nth=nth))
    world.run()
    world.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'a person decides'")
    world.time.advance(DAY)
    world.customer("bob")
    world.usage("bob")
    world.stripe.stop_listening()

    def attempt() -> ReportDocument:
        result = world.run()
        world.stripe.start_listening()
        return ReportDocument(
            command="report",
            mode="test",
            dry_run=False,
            started_at=world.time.now(),
            run_id=1,
            exit_code=result.exit_code,
            tallies=result.tallies,
            totals=result.totals,
        )

    document = with_job_retries(attempt, retries=2, delay=timedelta(0))
    held = [problem for problem in document.totals.problems.values() if problem.code == "held"]
    assert [problem.count for problem in held] == [document.totals.held] == [1]


def test_events_that_no_meter_delivers_any_more_are_not_passed_over_in_silence(world: World) -> None:
    """The meter was renamed while an event was due: nothing will ever send it, and the run knows."""
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.stop_listening()
    world.run()
    world.stripe.start_listening()
    world.stripe.create_meter(event_name="renamed")
    world.config["meters.ai_suggestion.event_name"] = "renamed"
    result = run(world)
    assert result.totals.reported or result.exit_code is not ExitCode.OK
