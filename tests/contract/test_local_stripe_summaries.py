"""Event summaries: what they add up, when, in which windows and pages."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe

NOON_S = 1_795_262_400
"""The clock of `frozen`, in unix seconds."""

HOUR_S, DAY_S = 3600, 86400
MIDNIGHT_S = NOON_S - 12 * HOUR_S


@pytest.fixture
def summaries(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> Any:
    """Return what lists the summaries of `ai_suggestion` and `cus_known`, of the day unless told otherwise."""

    def ask(event_name: str = "ai_suggestion", **params: Any) -> Any:
        meter = next(meter for meter in frozen.meters() if meter.event_name == event_name)
        day = {"customer": "cus_known", "start_time": MIDNIGHT_S, "end_time": MIDNIGHT_S + DAY_S}
        call: Any = stripe_sdk.v1.billing.meters.event_summaries.list  # its params are a typed dict
        return call(meter.id, {**day, **params})

    return ask


def test_the_clock_of_these_tests() -> None:
    assert datetime.fromtimestamp(NOON_S, UTC) == datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_without_a_window_there_is_one_summary(report: Any, summaries: Any) -> None:
    for value, timestamp in (("0.1", MIDNIGHT_S), ("0.2", NOON_S), ("40", MIDNIGHT_S - 1)):
        report(value=value, timestamp=timestamp)
    (summary,) = summaries().data
    assert summary.aggregated_value == 0.3
    assert isinstance(summary.aggregated_value, float)
    assert (summary.start_time, summary.end_time, summary.livemode) == (MIDNIGHT_S, MIDNIGHT_S + DAY_S, False)


def test_start_is_included_and_end_is_not(report: Any, summaries: Any) -> None:
    for timestamp in (NOON_S - 120, NOON_S - 61, NOON_S - 60):
        report(timestamp=timestamp)
    assert summaries(start_time=NOON_S - 120, end_time=NOON_S - 60).data[0].aggregated_value == 2


def test_large_totals_are_rounded_to_a_double(report: Any, summaries: Any) -> None:
    """15 digits and fifteen places do not fit one double together: totals read here are not exact."""
    report(value="999999999999999")
    report(value="0.01")
    assert summaries().data[0].aggregated_value == 999999999999999.0


def test_zero_usage_is_no_row_or_a_row_of_zero(frozen: LocalStripe, summaries: Any) -> None:
    assert summaries().data == []
    frozen.set_options(zero_usage="zero_row")
    assert [row.aggregated_value for row in summaries().data] == [0]
    rows = summaries(value_grouping_window="hour", limit=100).data
    assert [row.aggregated_value for row in rows] == [0] * 24
    with pytest.raises(stripe.InvalidRequestError, match="windows"):
        summaries(value_grouping_window="hour", start_time=0)


@pytest.mark.parametrize(("window", "length_s", "expected"), [("hour", HOUR_S, [1, 5]), ("day", DAY_S, [6])])
def test_windows_group_by_the_hour_or_utc_day(
    report: Any, summaries: Any, window: str, length_s: int, expected: list[int]
) -> None:
    for value, timestamp in (("2", MIDNIGHT_S + 10), ("3", MIDNIGHT_S + HOUR_S - 1), ("1", NOON_S)):
        report(value=value, timestamp=timestamp)
    rows = summaries(value_grouping_window=window).data
    assert [row.aggregated_value for row in rows] == expected
    assert all(row.end_time - row.start_time == length_s for row in rows)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"start_time": MIDNIGHT_S + 1}, "start_time"),
        ({"end_time": MIDNIGHT_S + 61}, "end_time"),
        ({"start_time": MIDNIGHT_S + 60, "value_grouping_window": "hour"}, "start_time"),
        ({"end_time": NOON_S, "value_grouping_window": "day"}, "end_time"),
        ({"end_time": MIDNIGHT_S}, "start_time"),
        ({"value_grouping_window": "week"}, "value_grouping_window"),
        ({"limit": 101}, "limit"),
        ({"limit": 0}, "limit"),
        ({"starting_after": "mtrusg_nowhere"}, "starting_after"),
        ({"customer": "cus_nobody"}, "customer"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_questions_are_checked(summaries: Any, params: dict[str, Any], param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        summaries(**params)
    assert (caught.value.http_status, caught.value.param) == (400, param)


def test_unknown_meter_is_404(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> None:
    assert frozen.url
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stripe_sdk.v1.billing.meters.event_summaries.list(
            "mtr_nowhere", {"customer": "cus_known", "start_time": MIDNIGHT_S, "end_time": NOON_S}
        )
    assert caught.value.http_status == 404


def test_an_event_counts_once_the_lag_has_passed(frozen: LocalStripe, report: Any, summaries: Any) -> None:
    frozen.set_options(summary_lag_s=60)
    report()
    frozen.clock.advance(timedelta(seconds=59))
    assert summaries().data == []
    frozen.clock.advance(timedelta(seconds=1))
    assert summaries().data[0].aggregated_value == 1


def test_a_rejected_event_never_counts(frozen: LocalStripe, report: Any, summaries: Any) -> None:
    frozen.set_options(unknown_customer="later")
    report(customer="cus_late")
    frozen.create_customer("cus_late")
    assert summaries(customer="cus_late").data == []


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_pages_follow_the_cursor_in_both_directions(report: Any, summaries: Any, limit: int) -> None:
    for hour in range(10):
        report(value=str(hour), timestamp=MIDNIGHT_S + hour * HOUR_S)
    first = summaries(value_grouping_window="hour", limit=limit)
    assert first.has_more == (limit < 10)
    values = [int(row.aggregated_value) for row in first.auto_paging_iter()]
    assert values == list(range(9, -1, -1))
    last = [row.id for row in first.auto_paging_iter()][-1]
    backwards = summaries(value_grouping_window="hour", limit=limit, ending_before=last).auto_paging_iter()
    assert [int(row.aggregated_value) for row in backwards] == list(range(1, 10))


def test_both_cursors_at_once_are_refused(summaries: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="only specify one"):
        summaries(starting_after="a", ending_before="b")


def test_formulas_apply_per_window(frozen: LocalStripe, report: Any, summaries: Any) -> None:
    frozen.create_meter(event_name="calls", formula="count")
    frozen.create_meter(event_name="sensors", formula="last")
    for value, timestamp in (("5", NOON_S - 60), ("9", NOON_S - 120), ("4", NOON_S)):
        report(value=value, event_name="calls", timestamp=timestamp)
        report(value=value, event_name="sensors", timestamp=timestamp)
    assert summaries("calls").data[0].aggregated_value == 3
    assert summaries("sensors").data[0].aggregated_value == 4
    rows = summaries("sensors", value_grouping_window="hour").data
    assert [row.aggregated_value for row in rows] == [4, 5]


def test_pre_aggregated_meter_shows_the_replaced_event_until_the_newer_one_is_counted(
    frozen: LocalStripe, report: Any, summaries: Any
) -> None:
    frozen.create_meter(event_name="daily", event_time_window="day")
    frozen.set_options(summary_lag_s=60)
    report(value="5", event_name="daily")
    frozen.clock.advance(timedelta(seconds=60))
    report(value="7", event_name="daily")
    assert summaries("daily").data[0].aggregated_value == 5
    frozen.clock.advance(timedelta(seconds=60))
    assert summaries("daily").data[0].aggregated_value == 7
