"""Stripe's error reports: evidence about events that it had answered with 200, for its totals to judge."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from meterctl.actions.report import ReportResult
from meterctl.core.model import MeterEvent, Outcome
from meterctl.errors import ExitCode, UnavailableError
from meterctl.ports import MeterEvents, Reading
from meterctl.postgres.error_reports import OpenReports, open_reports
from meterctl.postgres.ledger_admin import retry
from meterctl.sandbox.local_stripe.events import RelatedObject
from meterctl.sandbox.local_stripe.faults import Fault, FaultKind
from world import World

REPORT, NO_METER = "v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"
NOT_FOUND = "meter_event_customer_not_found"


def report(world: World, *named: str, error_count: int | None = None, kind: str = REPORT) -> str:
    """Let Stripe report these requests, as it names them, of a validation just now; the event's id."""
    samples = [{"error_message": f"About {one}.", "request": {"identifier": one}} for one in named]
    count = len(named) if error_count is None else error_count
    start = world.time.now() - timedelta(seconds=12)
    meter = only(world.stripe.meters())
    return world.stripe.emit_thin(
        kind,
        {
            "developer_message_summary": f"There are {count} invalid events",
            "reason": {
                "error_count": count,
                "error_types": [{"code": NOT_FOUND, "error_count": count, "sample_errors": samples}],
            },
            "validation_start": f"{start:%FT%T}.000Z",
            "validation_end": f"{start + timedelta(seconds=10):%FT%T}.000Z",
        },
        related=None if kind == NO_METER else RelatedObject(id=meter.id, type="billing.meter", url=""),
    )


def settle(world: World) -> None:
    """Read the totals for long enough that they decide."""
    world.time.advance(timedelta(minutes=20))
    world.settle()
    world.time.advance(timedelta(minutes=61))
    world.settle()


def samples(world: World) -> list[dict[str, Any]]:
    return world.rows("SELECT * FROM meterctl.error_samples ORDER BY id")


def billed(world: World, *quantities: int, dropped: Sequence[int] = ()) -> list[str]:
    """Report usage rows of `ada`, of which Stripe drops some by their position; their events' identifiers."""
    world.customer("ada")
    rows = [
        world.usage("ada", quantity, ago=timedelta(hours=2, minutes=5 * n)) for n, quantity in enumerate(quantities)
    ]
    for position in dropped:
        world.stripe.reject_later(identifier=f"ws-ada-{rows[position]}")
    assert world.run().exit_code is ExitCode.OK
    return [f"ws-ada-{row}" for row in rows]


def only(found: Sequence[Any]) -> Any:
    (one,) = found
    return one


def problems(result: ReportResult) -> dict[str, int]:
    return {code: problem.count for code, problem in result.totals.problems.items()}


def stamps(world: World) -> list[bool]:
    return [
        row["stamped"]
        for row in world.rows("SELECT stripe_reported_at IS NOT NULL AS stamped FROM usage_events ORDER BY id")
    ]


@pytest.mark.parametrize("named_by", ["{}", "{}:0"], ids=["identifier", "idempotency key"])
def test_what_stripe_dropped_is_found_absent_and_rejected(world: World, named_by: str) -> None:
    (identifier,) = billed(world, 7, dropped=[0])
    report(world, named_by.format(identifier))
    assert only(world.pull()).status == "processed"
    event = only(world.events())
    assert (event["state"], event["error_code"], event["doubt_since"].year) == ("in_doubt", NOT_FOUND, 1970)
    assert stamps(world) == [False]
    settle(world)
    event = only(world.events())
    assert (event["state"], event["error_code"]) == ("rejected", NOT_FOUND)
    assert only(samples(world))["verdict"] == "rejected"
    world.assert_exact()


def test_what_was_rejected_late_is_retried_under_a_new_identifier_and_billed_once(world: World) -> None:
    (identifier,) = billed(world, 7, dropped=[0])
    report(world, identifier)
    world.pull()
    settle(world)
    assert retried(world) == 1
    world.run()
    assert [(event["identifier"], event["state"]) for event in world.events()] == [
        (identifier, "replaced"),
        (f"{identifier}~2", "accepted"),
    ]
    assert stamps(world) == [True]
    assert world.stripe_total() == 7
    world.assert_exact()


def test_a_report_of_what_was_counted_is_explained_and_changes_no_bill(world: World) -> None:
    (identifier,) = billed(world, 7)
    report(world, identifier)
    world.pull()
    assert world.states() == ["in_doubt"]
    settle(world)
    assert world.states() == ["accepted"]
    assert only(samples(world))["verdict"] == "explained"
    world.run()
    assert stamps(world) == [True]
    world.assert_exact()


def test_nothing_is_sent_again_on_account_of_a_report(world: World) -> None:
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1")
    world.pull()
    before = len(world.stripe.requests("meter_events.create"))
    world.run()
    settle(world)
    world.run()
    assert len(world.stripe.requests("meter_events.create")) == before


def test_a_new_report_makes_a_run_end_with_problems_once(world: World) -> None:
    billed(world, 7)
    report(world, "ws-ada-1")
    world.pull()
    world.time.advance(timedelta(minutes=1))
    first = world.run()
    assert (first.exit_code, problems(first)) == (ExitCode.PROBLEMS, {"error_report": 1})
    world.time.advance(timedelta(minutes=1))
    assert world.run().exit_code is ExitCode.OK


def test_the_run_that_finds_it_absent_names_it(world: World) -> None:
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1")
    world.pull()
    for minutes in (20, 61):
        world.time.advance(timedelta(minutes=minutes))
        last = world.run()
    assert (last.exit_code, problems(last)) == (ExitCode.PROBLEMS, {NOT_FOUND: 1})
    assert last.totals.rejected == 1


def test_a_doubt_that_totals_do_not_decide_for_days_is_a_persons(world: World) -> None:
    billed(world, 7)
    report(world, "ws-ada-1")
    world.pull()
    world.wrap_totals = lambda _: Away()
    world.time.advance(timedelta(hours=71))
    world.run()
    assert "held" not in problems(world.run())
    world.time.advance(timedelta(hours=2))
    assert problems(world.run())["held"] == 1


class Away:
    """Totals that cannot be read."""

    def total(self, customer: str, start: datetime, end: datetime) -> Reading:
        raise UnavailableError(f"no total of {customer} from {start} to {end}")


def retried(world: World) -> int:
    """Retry every rejection; how many are due again."""
    ids = [event["id"] for event in world.events() if event["state"] == "rejected"]
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        done = retry(connection, ids, world.rows_source(connection), "ai_suggestion", "mended", world.time.now())
    return len(done.done_ids)


def test_a_report_that_comes_before_the_answer_is_written_down(world: World) -> None:
    """The report is acted on while the call is under way: the run's own record changes nothing any more."""
    world.customer("ada")
    world.usage("ada", 7)
    world.stripe.reject_later(identifier="ws-ada-1")

    class Reporting:
        def __init__(self, events: MeterEvents) -> None:
            self.events = events

        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            outcome = self.events.create(event, idempotency_key=idempotency_key)
            report(world, idempotency_key)
            world.pull()
            return outcome

    world.wrap_events = Reporting
    world.run()
    event = only(world.events())
    assert (event["state"], event["doubt_since"].year) == ("in_doubt", 1970)
    settle(world)
    assert world.states() == ["rejected"]
    world.assert_exact()


def test_a_report_about_an_older_attempt_of_what_was_counted_in_the_end(world: World) -> None:
    """The first attempt's answer is lost and Stripe reports it; the second one counts."""
    world.customer("ada")
    world.usage("ada", 7)
    world.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, when="before"))
    assert world.run().exit_code is ExitCode.OK
    report(world, "ws-ada-1:0")
    world.pull()
    settle(world)
    assert world.states() == ["accepted"]
    assert only(samples(world))["verdict"] == "explained"
    world.assert_exact()


@pytest.mark.parametrize("state", ["pending", "in_doubt", "rejected", "expired"])
def test_a_report_finds_its_event_in_whatever_state(world: World, state: str) -> None:
    """None of these is in Stripe; each ends rejected under Stripe's code."""
    world.customer("ada")
    world.usage("ada", 7)
    world.stripe.add_fault(Fault(kind=FaultKind.BAD_REQUEST, message="no"))
    world.run()
    bare = "doubt_since = NULL, error_code = NULL" if state == "pending" else "told = true"
    bare = "doubt_since = now(), ever_in_doubt = true" if state == "in_doubt" else bare
    change = f"UPDATE meterctl.meter_events SET state = '{state}', {bare}"  # noqa: S608 -- a test's own words
    world.connection.execute(change)
    report(world, "ws-ada-1")
    world.pull()
    event = only(world.events())
    assert (event["state"], event["doubt_since"].year) == ("in_doubt", 1970)
    settle(world)
    event = only(world.events())
    assert (event["state"], event["error_code"]) == ("rejected", NOT_FOUND)


@pytest.mark.parametrize("state", ["replaced", "waived"])
def test_what_a_person_has_closed_stays_closed(world: World, state: str) -> None:
    billed(world, 7, dropped=[0])
    world.connection.execute("UPDATE meterctl.meter_events SET state = %s, closed_reason = 'so'", [state])
    report(world, "ws-ada-1")
    world.pull()
    assert world.states() == [state]
    assert only(samples(world))["verdict"] == "closed"


def test_what_was_never_sent_is_none_of_stripes(world: World) -> None:
    world.insert("subscriptions", {"user_id": "ada"})
    world.usage("ada", 7)
    world.run()
    assert only(world.events())["error_code"] == "local:no_customer_id"
    report(world, "ws-ada-1")
    assert "foreign" in (only(world.pull()).outcome or "")
    assert world.states() == ["rejected"]


def test_a_report_that_names_nothing_of_ours_is_foreign_and_no_problem(world: World) -> None:
    billed(world, 7)
    report(world, "somebody-elses")
    assert only(world.pull()).outcome == "foreign: 1 foreign"
    assert only(samples(world))["verdict"] == "foreign"
    world.time.advance(timedelta(minutes=1))
    assert world.run().exit_code is ExitCode.OK
    assert world.states() == ["accepted"]


def test_the_same_error_in_several_reports_is_settled_once(world: World) -> None:
    """Two by hand, and the one that the local Stripe makes of its own; one more comes when all is settled."""
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1")
    report(world, "ws-ada-1")
    world.time.advance(timedelta(minutes=1))
    assert [acted.status for acted in world.pull()] == ["processed"] * 3
    settle(world)
    assert [sample["verdict"] for sample in samples(world)] == ["rejected"] * 3
    report(world, "ws-ada-1:0")
    world.pull()
    assert world.states() == ["rejected"]
    assert [sample["verdict"] for sample in samples(world)] == ["rejected"] * 4


def test_what_is_held_stays_held_for_the_same_report(world: World) -> None:
    billed(world, 7)
    report(world, "ws-ada-1")
    world.pull()
    world.connection.execute("UPDATE meterctl.meter_events SET held_reason = 'foreign'")
    report(world, "ws-ada-1:0")
    world.pull()
    assert only(world.events())["held_reason"] == "foreign"


def test_no_meter_found_is_a_report_too(world: World) -> None:
    billed(world, 7, dropped=[0])
    report(world, "ws-ada-1", kind=NO_METER)
    world.pull()
    settle(world)
    assert world.states() == ["rejected"]


def test_an_identifier_that_ends_like_a_key_and_the_key_it_looks_like_are_both_meant(world: World) -> None:
    first, second = billed(world, 7, 9)
    world.connection.execute(
        "UPDATE meterctl.meter_events SET identifier = %s WHERE identifier = %s", [f"{first}:0", second]
    )
    report(world, f"{first}:0")
    world.pull()
    assert world.states() == ["in_doubt", "in_doubt"]


def test_a_key_that_went_as_its_hash_is_found(world: World) -> None:
    world.customer("añil")
    world.usage("añil", 7)
    world.stripe.reject_later(identifier="ws-añil-1")
    world.run()
    key = only(world.stripe.requests("meter_events.create")).idempotency_key
    assert key is not None
    assert len(key) == 64
    report(world, key)
    world.pull()
    assert world.states() == ["in_doubt"]


def test_errors_that_no_sample_names_are_open_until_reconciled(world: World) -> None:
    billed(world, 7, 9, dropped=[1])
    report(world, error_count=1)
    assert only(world.pull()).outcome == "ai_suggestion: 1 not named"
    world.time.advance(timedelta(hours=2))
    open_ = only(opened(world))
    assert (open_.problem.code, open_.problem.count, open_.event_name) == ("unnamed_errors", 1, "ai_suggestion")
    assert open_.since is not None
    assert open_.until is not None
    times = [event["sent_timestamp"] for event in world.events()]
    assert open_.since <= min(times)
    assert max(times) < open_.until
    assert problems(world.run()) == {"error_report": 1}


def opened(world: World) -> list[OpenReports]:
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        return open_reports(connection, world.time.now(), world.settings().levels)


def test_rejections_outside_the_samples_do_not_mislead_the_totals(world: World) -> None:
    """Three of one minute are dropped, one is named: the total fits no combination, so a person is asked."""
    world.customer("ada")
    rows = [world.usage("ada", quantity, ago=timedelta(hours=2)) for quantity in (1, 2, 4)]
    for row in rows:
        world.stripe.reject_later(identifier=f"ws-ada-{row}")
    world.run()
    report(world, f"ws-ada-{rows[0]}", error_count=3)
    world.pull()
    settle(world)
    assert [(event["state"], event["held_reason"]) for event in world.events()] == [
        ("in_doubt", "shortfall"),
        ("accepted", None),
        ("accepted", None),
    ]


def test_equal_events_of_a_minute_change_places_and_the_bill_is_the_same(world: World) -> None:
    """One of two equal events is dropped, and the report names the other one."""
    world.customer("ada")
    rows = [world.usage("ada", 5, ago=timedelta(hours=2)) for _ in range(2)]
    world.stripe.reject_later(identifier=f"ws-ada-{rows[0]}")
    world.run()
    report(world, f"ws-ada-{rows[1]}")
    world.pull()
    settle(world)
    assert sorted(world.states()) == ["accepted", "rejected"]
    world.assert_exact()


def test_another_modes_report_touches_nothing(world: World) -> None:
    billed(world, 7)
    world.connection.execute("SELECT meterctl.store_stripe_event(%s)", [Jsonb(thin(livemode=True))])
    assert [(acted.status, acted.outcome) for acted in world.pull()] == [("ignored", "of live mode")]
    assert world.states() == ["accepted"]


def thin(*, livemode: bool) -> dict[str, Any]:
    return {
        "id": "evt_other",
        "object": "v2.core.event",
        "type": REPORT,
        "created": "2026-11-21T02:00:00.000Z",
        "livemode": livemode,
        "data": {"reason": {"error_types": [{"sample_errors": [{"request": {"identifier": "ws-ada-1"}}]}]}},
    }


def test_a_lasting_lock_on_the_row_leaves_the_report_for_the_next_pull(world: World) -> None:
    billed(world, 7)
    report(world, "ws-ada-1")
    with psycopg.connect(world.database_url) as other:
        other.execute("SELECT FROM usage_events FOR UPDATE")
        with pytest.raises(UnavailableError):
            world.pull()
    assert world.states() == ["accepted"]
    assert only(world.pull()).status == "processed"
    assert world.states() == ["in_doubt"]


def test_a_malformed_report_fails_by_itself(world: World) -> None:
    billed(world, 7)
    world.stripe.emit_thin(REPORT, {"reason": None})
    report(world, "ws-ada-1")
    assert sorted(acted.status for acted in world.pull()) == ["failed", "processed"]
    failed = only(world.rows("SELECT * FROM meterctl.stripe_events WHERE status = 'failed'"))
    assert "data.reason" in failed["error"]
    assert world.states() == ["in_doubt"]
