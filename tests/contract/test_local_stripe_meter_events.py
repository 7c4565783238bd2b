"""Which meter events the local Stripe takes and which it refuses, as the SDK sees it."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe

NOW_S = 1_795_262_400
"""The clock of `frozen`, in unix seconds."""

REFUSED = stripe.InvalidRequestError


def refusal(report: Any, **call: Any) -> stripe.InvalidRequestError:
    with pytest.raises(REFUSED) as caught:
        report(**call)
    return caught.value


def test_an_event_is_answered_with_itself_and_kept_exactly(frozen: LocalStripe, report: Any) -> None:
    answer = report("first", "0.10", key="first:0", timestamp=NOW_S - 60)
    assert (answer.object, answer.identifier, answer.livemode) == ("billing.meter_event", "first", False)
    assert (answer.created, answer.timestamp) == (NOW_S, NOW_S - 60)
    assert answer.payload["value"] == "0.10"
    (stored,) = frozen.events()
    assert (stored.value, stored.quantity, stored.idempotency_key) == ("0.10", Decimal("0.10"), "first:0")
    assert stored.received - stored.timestamp == timedelta(seconds=60)
    assert stored.counted


def test_totals_are_exact_where_doubles_are_not(frozen: LocalStripe, report: Any) -> None:
    for _ in range(10):
        report(value="0.1")
    assert frozen.totals() == {("ai_suggestion", "cus_known"): Decimal(1)}


def test_identifier_and_timestamp_are_optional(report: Any) -> None:
    first, second = report(), report()
    assert first.identifier != second.identifier
    assert first.timestamp == NOW_S


def test_repeated_identifier_is_refused_without_a_code(frozen: LocalStripe, report: Any) -> None:
    """The message and the header are all that tells a duplicate from another 400."""
    report("same")
    error = refusal(report, identifier="same", value="2")
    assert (error.http_status, error.code, error.user_message) == (
        400,
        None,
        "An event already exists with identifier same.",
    )
    assert error.error is not None
    assert error.error.type == "invalid_request_error"
    assert error.headers is not None
    assert error.headers["stripe-should-retry"] == "false"
    assert frozen.totals() == {("ai_suggestion", "cus_known"): Decimal(1)}


@pytest.mark.parametrize("window_h", [24, 48])
def test_repeated_identifier_counts_twice_after_the_window(frozen: LocalStripe, report: Any, window_h: int) -> None:
    frozen.set_options(identifier_window_h=window_h)
    report("same")
    frozen.clock.advance(timedelta(hours=window_h) - timedelta(seconds=1))
    refusal(report, identifier="same")
    frozen.clock.advance(timedelta(seconds=1))
    report("same")
    assert frozen.totals() == {("ai_suggestion", "cus_known"): Decimal(2)}


def test_identifier_is_taken_for_all_customers(frozen: LocalStripe, report: Any) -> None:
    frozen.create_customer("cus_other")
    report("same")
    assert "already exists with identifier same" in str(refusal(report, identifier="same", customer="cus_other"))


def test_timestamp_may_be_35_days_old_to_the_second(report: Any) -> None:
    oldest_s = NOW_S - 35 * 86400
    report(timestamp=oldest_s)
    assert refusal(report, timestamp=oldest_s - 1).user_message == (
        "The event timestamp cannot be more than 35 days in past. "
        f"Expected a timestamp greater than or equal to {oldest_s}."
    )


def test_timestamp_may_be_five_minutes_ahead(report: Any) -> None:
    report(timestamp=NOW_S + 300)
    error = refusal(report, timestamp=NOW_S + 301)
    assert error.param == "timestamp"
    assert f"less than or equal to {NOW_S + 300}" in str(error)


def test_too_old_wins_over_already_exists(frozen: LocalStripe, report: Any) -> None:
    """A resend near the limit learns nothing about the first attempt."""
    report("edge", timestamp=NOW_S - 35 * 86400)
    frozen.clock.advance(timedelta(seconds=1))
    assert "35 days in past" in str(refusal(report, identifier="edge", timestamp=NOW_S - 35 * 86400))


@pytest.mark.parametrize("value", ["123456789012345", "0.000000123456789012345", "-1", "0", "00012", "1.50"])
def test_values_of_up_to_15_digits_are_taken(frozen: LocalStripe, report: Any, value: str) -> None:
    report(value=value)
    assert frozen.events()[0].quantity == Decimal(value)


def test_sixteen_digits_are_refused(report: Any) -> None:
    assert refusal(report, value="1234567890123.456").user_message == (
        "The value in the event payload can have at most 15 digits. Received 1234567890123.456."
    )


@pytest.mark.parametrize("value", ["1e-05", "1E5", "NaN", "Infinity", "-", "1.", ".5", "+1", " 1", "1,5", "٣", "0x1"])
def test_what_is_no_plain_number_is_refused(report: Any, value: str) -> None:
    error = refusal(report, value=value)
    assert (error.http_status, error.param) == (400, "payload[value]")


@pytest.mark.parametrize("key", ["stripe_customer_id", "value"])
def test_payload_must_hold_the_keys_of_the_meter(report: Any, key: str) -> None:
    payload = {"stripe_customer_id": "cus_known", "value": "1"}
    del payload[key]
    error = refusal(report, payload={**payload, "region": "eu"})
    assert (error.http_status, error.param) == (400, f"payload[{key}]")


def test_meters_choose_their_payload_keys(frozen: LocalStripe, report: Any) -> None:
    frozen.create_meter(event_name="renamed", customer_key="who", value_key="much")
    report(event_name="renamed", payload={"who": "cus_known", "much": "7", "region": "eu"})
    assert frozen.totals() == {("renamed", "cus_known"): Decimal(7)}
    assert frozen.events()[0].payload["region"] == "eu"


def test_unknown_customer_is_refused_at_once(frozen: LocalStripe, report: Any) -> None:
    error = refusal(report, customer="cus_nobody")
    assert (error.http_status, error.code) == (400, "resource_missing")
    assert error.user_message == "No such customer: 'cus_nobody'"
    assert not frozen.events()


def test_unknown_customer_may_be_found_out_later(frozen: LocalStripe, report: Any) -> None:
    """200 means accepted, not counted: only the totals and the list of rejections tell."""
    frozen.set_options(unknown_customer="later")
    assert report("lost", customer="cus_nobody").identifier == "lost"
    assert [event.counted for event in frozen.events()] == [False]
    assert frozen.totals() == {}
    (rejection,) = frozen.async_rejections()
    assert (rejection.code, rejection.identifier) == ("meter_event_customer_not_found", "lost")


def test_event_name_needs_an_active_meter(frozen: LocalStripe, report: Any, stripe_sdk: stripe.StripeClient) -> None:
    assert "No active meter found" in str(refusal(report, event_name="unheard_of"))
    (meter,) = frozen.meters()
    stripe_sdk.v1.billing.meters.deactivate(meter.id)
    assert "No active meter found" in str(refusal(report))
    stripe_sdk.v1.billing.meters.reactivate(meter.id)
    report()


@pytest.mark.parametrize(
    ("other", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"event_name": "x" * 101}, "event_name"),
        ({"identifier": "x" * 101}, "identifier"),
        ({"identifier": ""}, "identifier"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "9" * 30}, "timestamp"),
        ({"payload": "flat"}, "payload"),
        ({"payload": {"stripe_customer_id": "cus_known", "value": "1", "note": "x" * 101}}, "payload[note]"),
        ({"payload": {"stripe_customer_id": {"id": "cus_known"}, "value": "1"}}, "payload[stripe_customer_id]"),
    ],
)
def test_parameters_are_checked(report: Any, other: dict[str, Any], param: str) -> None:
    error = refusal(report, **other)
    assert (error.http_status, error.param) == (400, param)


def test_lengths_up_to_the_limit_are_taken(frozen: LocalStripe, report: Any) -> None:
    frozen.create_meter(event_name="x" * 100)
    report("i" * 100, event_name="x" * 100)


@pytest.mark.parametrize("missing", ["event_name", "payload"])
def test_required_parameters_are_named(stripe_sdk: stripe.StripeClient, missing: str) -> None:
    params: Any = {"event_name": "ai_suggestion", "payload": {"stripe_customer_id": "cus_known", "value": "1"}}
    del params[missing]
    with pytest.raises(REFUSED) as caught:
        stripe_sdk.v1.billing.meter_events.create(params)
    assert (caught.value.code, caught.value.param) == ("parameter_missing", missing)


def test_pre_aggregated_meter_keeps_the_event_received_last_in_a_window(frozen: LocalStripe, report: Any) -> None:
    frozen.create_meter(event_name="hourly", event_time_window="hour")
    for identifier, value, timestamp in (("a", "5", NOW_S - 60), ("b", "7", NOW_S - 3000), ("c", "1", NOW_S)):
        report(identifier, value, event_name="hourly", timestamp=timestamp)
    assert {event.identifier: event.counted for event in frozen.events()} == {"a": False, "b": True, "c": True}
    assert frozen.totals() == {("hourly", "cus_known"): Decimal(8)}


def test_count_and_last_meters_aggregate_in_their_way(frozen: LocalStripe, report: Any) -> None:
    frozen.create_meter(event_name="calls", formula="count")
    frozen.create_meter(event_name="sensors", formula="last")
    for value, timestamp in (("5", NOW_S - 60), ("9", NOW_S), ("3", NOW_S - 120)):
        report(value=value, event_name="calls", timestamp=timestamp)
        report(value=value, event_name="sensors", timestamp=timestamp)
    assert frozen.totals() == {("calls", "cus_known"): Decimal(3), ("sensors", "cus_known"): Decimal(9)}


def test_equal_timestamps_of_a_last_meter_go_by_arrival(frozen: LocalStripe, report: Any) -> None:
    frozen.create_meter(event_name="sensors", formula="last")
    for value in ("5", "4"):
        report(value=value, event_name="sensors", timestamp=NOW_S)
    assert frozen.totals() == {("sensors", "cus_known"): Decimal(4)}
