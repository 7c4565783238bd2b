"""Events that are answered with 200 and found invalid afterwards, and the reports that tell of them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import FaultKind, LocalStripe, RandomRejections

ERROR_REPORT = "v1.billing.meter.error_report_triggered"
NO_METER_FOUND = "v1.billing.meter.no_meter_found"

DUE = timedelta(seconds=12)
"""From NOW, where a window of 10 s begins, until its reports come."""


@pytest.fixture
def reports(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> Any:
    """Return what fetches the reports listed now, newest first."""
    assert frozen.url

    def read() -> list[Any]:
        return [stripe_sdk.v2.core.events.retrieve(event.id) for event in stripe_sdk.v2.core.events.list().data]

    return read


def named(report: Any) -> list[str]:
    """Return what the samples of a report name."""
    return [
        sample.request.identifier
        for error_type in report.data.reason.error_types
        for sample in error_type.sample_errors
    ]


def counts(report: Any) -> dict[str, int]:
    """Return code → number of errors of a report."""
    return {error_type.code: error_type.error_count for error_type in report.data.reason.error_types}


def test_a_report_comes_once_its_window_is_over(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.set_options(unknown_customer="later")
    report("lost", customer="cus_nobody", key="lost:0")
    report("kept")
    frozen.clock.advance(DUE - timedelta(milliseconds=1))
    assert reports() == []
    frozen.clock.advance(timedelta(days=1))
    (seen,) = reports()
    (meter,) = frozen.meters()
    assert (seen.type, seen.created) == (ERROR_REPORT, "2026-11-21T12:00:12.000Z")
    assert seen.related_object.to_dict() == {
        "id": meter.id,
        "type": "billing.meter",
        "url": f"/v1/billing/meters/{meter.id}",
    }
    error = {
        "error_message": "No customer was found matching cus_nobody.",
        "request": {"identifier": "lost"},
    }
    assert seen.data.to_dict() == {
        "developer_message_summary": "There is 1 invalid event",
        "reason": {
            "error_count": 1,
            "error_types": [
                {"code": "meter_event_customer_not_found", "error_count": 1, "sample_errors": [error]},
            ],
        },
        "validation_end": "2026-11-21T12:00:10.000Z",
        "validation_start": "2026-11-21T12:00:00.000Z",
    }
    assert reports() == [seen], "a report comes once"


def test_each_window_and_meter_has_a_report_of_its_own(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.set_options(unknown_customer="later", bad_value="later")
    frozen.create_meter(event_name="calls")
    report("a", customer="cus_nobody")
    report("b", "NaN")
    report("c", "NaN", event_name="calls")
    frozen.clock.advance(timedelta(seconds=10))
    report("d", "NaN")
    frozen.clock.advance(timedelta(hours=1))
    later, *earlier = reports()
    assert (named(later), later.created) == (["d"], "2026-11-21T12:00:22.000Z")
    assert sorted(map(named, earlier)) == [["a", "b"], ["c"]]
    assert {each.related_object.id for each in earlier} == {meter.id for meter in frozen.meters()}
    assert counts(max(earlier, key=lambda each: len(named(each)))) == {
        "meter_event_customer_not_found": 1,
        "meter_event_invalid_value": 1,
    }


@pytest.mark.parametrize(
    ("value", "code"),
    [("NaN", "meter_event_invalid_value"), ("1234567890123456", "meter_event_value_too_many_digits")],
)
def test_a_bad_value_may_be_found_out_later(frozen: LocalStripe, report: Any, value: str, code: str) -> None:
    frozen.set_options(bad_value="later")
    report("bad", value)
    (rejection,) = frozen.async_rejections()
    assert (rejection.code, rejection.identifier) == (code, "bad")
    assert value in rejection.message
    assert (frozen.totals(), frozen.events()[0].value) == ({}, value)


def test_an_archived_meter_may_be_found_out_later(frozen: LocalStripe, report: Any, reports: Any) -> None:
    (meter,) = frozen.meters()
    frozen.deactivate_meter(meter.id)
    frozen.set_options(inactive_meter="later")
    report("late")
    frozen.clock.advance(DUE)
    (seen,) = reports()
    assert (counts(seen), seen.related_object.id, frozen.totals()) == ({"archived_meter": 1}, meter.id, {})


def test_a_name_that_no_meter_ever_had_is_told_without_one(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.set_options(inactive_meter="later")
    report("lost", event_name="unheard_of")
    assert [event.counted for event in frozen.events()] == [False]
    frozen.clock.advance(DUE)
    (seen,) = reports()
    assert (seen.type, counts(seen), named(seen)) == (NO_METER_FOUND, {"no_meter": 1}, ["lost"])
    assert "related_object" not in seen
    message = seen.data.reason.error_types[0].sample_errors[0].error_message
    assert message == "No meter was found matching event_name unheard_of."


def test_a_scripted_no_meter_is_told_without_one_too(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.reject_later(code="no_meter")
    report("lost")
    frozen.clock.advance(DUE)
    assert [each.type for each in reports()] == [NO_METER_FOUND]


def test_a_dropped_event_keeps_its_identifier(frozen: LocalStripe, report: Any) -> None:
    frozen.set_options(unknown_customer="later", inactive_meter="later")
    report("lost", customer="cus_nobody")
    report("lost too", event_name="unheard_of")
    for identifier in ("lost", "lost too"):
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            report(identifier)


def test_errors_are_counted_beyond_the_samples(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.set_options(unknown_customer="later", report_samples_max=2)
    for identifier in "cab":
        report(identifier, customer="cus_nobody")
    frozen.clock.advance(DUE)
    (seen,) = reports()
    assert (seen.data.reason.error_count, counts(seen)) == (3, {"meter_event_customer_not_found": 3})
    assert named(seen) == ["a", "b"]
    assert seen.data.developer_message_summary == "There are 3 invalid events"


def test_a_report_may_name_the_key_of_the_attempt_that_was_stored(
    frozen: LocalStripe, report: Any, reports: Any
) -> None:
    frozen.set_options(unknown_customer="later", report_names="idempotency_key")
    frozen.add_fault(FaultKind.ERROR_500)
    with pytest.raises(stripe.APIError):
        report("lost", customer="cus_nobody", key="lost:0")
    report("lost", customer="cus_nobody", key="lost:1")
    frozen.clock.advance(DUE)
    assert [named(each) for each in reports()] == [["lost:1"]]


def test_reports_may_come_twice(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.set_options(unknown_customer="later", duplicate_reports=True)
    report("lost", customer="cus_nobody")
    frozen.clock.advance(DUE)
    first, second = reports()
    assert first.id != second.id
    assert first.data.to_dict() == second.data.to_dict()


def test_reports_are_of_one_mode(frozen: LocalStripe, make_stripe_sdk: Any, report: Any, reports: Any) -> None:
    frozen.create_meter(event_name="ai_suggestion", livemode=True)
    frozen.create_customer("cus_known", livemode=True)
    frozen.reject_later(livemode=True)
    report("tested")
    live = make_stripe_sdk(frozen.api_key_live)
    report("live", sdk=live)
    frozen.clock.advance(DUE)
    assert reports() == []
    (seen,) = live.v2.core.events.list().data
    assert seen.livemode is True
    assert (frozen.async_rejections(), len(frozen.async_rejections(livemode=True))) == ([], 1)


def test_a_scripted_rejection_drops_what_it_names(frozen: LocalStripe, report: Any, reports: Any) -> None:
    frozen.create_customer("cus_other")
    frozen.create_meter(event_name="calls")
    frozen.reject_later("b", code="meter_event_invalid_value")
    frozen.reject_later(customer="cus_other", event_name="calls", times=2)
    for identifier in "abcd":
        report(identifier)
    report("other meter", customer="cus_other")
    report("other customer", event_name="calls")
    for identifier in "efg":
        report(identifier, customer="cus_other", event_name="calls")
    assert [rejection.identifier for rejection in frozen.async_rejections()] == ["b", "e", "f"]
    assert frozen.totals() == {
        ("ai_suggestion", "cus_known"): Decimal(3),
        ("calls", "cus_known"): Decimal(1),
        ("calls", "cus_other"): Decimal(1),
        ("ai_suggestion", "cus_other"): Decimal(1),
    }
    frozen.clock.advance(DUE)
    assert sorted(map(named, reports())) == [["b"], ["e", "f"]]


def test_a_refused_event_uses_up_no_scripted_rejection(frozen: LocalStripe, report: Any) -> None:
    report("taken")
    frozen.reject_later()
    for refused in ({"value": "NaN"}, {"identifier": "taken"}):
        with pytest.raises(stripe.InvalidRequestError):
            report(**refused)
    report("next")
    assert [rejection.identifier for rejection in frozen.async_rejections()] == ["next"]


def rejected(server: LocalStripe, report: Any, identifiers: Iterable[str]) -> tuple[set[str], set[str]]:
    """Send events in this order, two at a time, each of a customer of its own; return the dropped and the reported."""
    server.reset()
    server.create_meter(event_name="ai_suggestion")
    server.set_options(report_samples_max=100)
    server.set_random_rejections(RandomRejections(seed=7, rate=0.3, false_rate=0.2))

    def send(identifier: str) -> None:
        report(identifier, customer=server.create_customer(f"cus_{identifier}").id)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, identifiers))
    server.clock.advance(timedelta(minutes=1))
    reported = {name for event in server.thin_events() for name in sampled(event.data)}
    dropped = {rejection.identifier for rejection in server.async_rejections()}
    assert {event.identifier for event in server.events() if not event.counted} == dropped
    return dropped, reported


def sampled(data: Any) -> list[str]:
    return [
        sample["request"]["identifier"]
        for error_type in data["reason"]["error_types"]
        for sample in error_type["sample_errors"]
    ]


def test_seeded_rejections_go_by_identifier_not_by_order(frozen: LocalStripe, report: Any) -> None:
    """Some are dropped and reported, some reported though they count, and nothing is dropped in silence."""
    identifiers = [f"event{number}" for number in range(40)]
    dropped, reported = rejected(frozen, report, identifiers)
    assert dropped < reported < set(identifiers)
    assert rejected(frozen, report, reversed(identifiers)) == (dropped, reported)


def test_an_identifier_is_struck_so_often_at_most(frozen: LocalStripe, report: Any) -> None:
    frozen.set_random_rejections(RandomRejections(seed=1, rate=1, per_identifier_max=1))
    report("again")
    frozen.clock.advance(timedelta(days=1))
    report("again")
    assert len(frozen.async_rejections()) == 1
    frozen.set_random_rejections(None)
    report("free")
    assert frozen.totals() == {("ai_suggestion", "cus_known"): Decimal(2)}


def test_a_report_can_be_written_by_hand(frozen: LocalStripe, report: Any, reports: Any) -> None:
    """About what counted, about what nobody sent, with more errors than samples."""
    meter = frozen.create_meter(event_name="calls")
    report("counted", event_name="calls")
    frozen.clock.advance(timedelta(minutes=1))
    event_id = frozen.report_error("counted", code="timestamp_in_future", message="Too new.", error_count=5)
    (seen,) = reports()
    assert (seen.id, counts(seen), named(seen)) == (event_id, {"timestamp_in_future": 5}, ["counted"])
    assert (seen.related_object.id, seen.created) == (meter.id, "2026-11-21T12:01:00.000Z")
    assert seen.data.validation_start == "2026-11-21T12:00:00.000Z"
    frozen.report_error("nobody sent it", meter_id="mtr_other")
    frozen.report_error("nor this", code="no_meter")
    assert [(named(each), getattr(each, "related_object", None)) for each in reports()[:1]] == [(["nor this"], None)]
    assert reports()[1].related_object.id == "mtr_other"
    assert frozen.totals() == {("calls", "cus_known"): Decimal(1)}


def test_a_report_needs_a_meter() -> None:
    with pytest.raises(ValueError, match="No such billing meter"):
        LocalStripe().report_error("event")
