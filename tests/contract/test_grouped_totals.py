"""Totals by hour and day, as reconciling reads them: windows, pages, an unknown customer, 429."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from meterctl.errors import ConfigurationError, NotPermittedError, UnavailableError
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from meterctl.stripe_api.summaries import MeterSummaries

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
"""The clock of `frozen`."""

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = NOON - 12 * HOUR


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def read(frozen: LocalStripe, stripe_sdk: stripe.StripeClient, waits: list[float]) -> Callable[..., Any]:
    assert frozen.url
    summaries = MeterSummaries(stripe_sdk, "ai_suggestion", livemode=False, pace_per_s=2, sleep=waits.append)

    def ask(start: datetime, end: datetime, unit: timedelta | None, customer: str = "cus_known") -> Any:
        return summaries.grouped(customer, start, end, unit)

    return ask


def test_days_and_hours_are_told_apart(report: Any, read: Callable[..., Any]) -> None:
    for value, at in (("2", NOON), ("3", NOON - HOUR), ("0.1", NOON - DAY), ("0.2", NOON - DAY)):
        report(value=value, timestamp=int(at.timestamp()))
    days = read(MIDNIGHT - 5 * DAY, MIDNIGHT + DAY, DAY)
    assert days.totals == {MIDNIGHT: 5, MIDNIGHT - DAY: Decimal("0.3")}
    assert read(MIDNIGHT, MIDNIGHT + DAY, HOUR).totals == {NOON: 2, NOON - HOUR: 3}
    assert read(MIDNIGHT, NOON, None).totals == {MIDNIGHT: 3}


def test_rows_of_zero_are_totals_of_zero(frozen: LocalStripe, read: Callable[..., Any]) -> None:
    frozen.set_options(zero_usage="zero_row")
    found = read(MIDNIGHT, MIDNIGHT + DAY, HOUR)
    assert (len(found.totals), set(found.totals.values()), found.read_count) == (24, {0}, 1)
    assert read(MIDNIGHT, NOON, None).totals == {MIDNIGHT: 0}


@pytest.mark.parametrize(("hours", "pages"), [(100, 1), (101, 2), (250, 3)])
def test_every_page_is_read_paced_and_counted(
    report: Any, read: Callable[..., Any], waits: list[float], hours: int, pages: int
) -> None:
    for n in range(hours):
        report(value=str(n + 1), timestamp=int((NOON - n * HOUR).timestamp()))
    found = read(NOON - (hours - 1) * HOUR, NOON + HOUR, HOUR)
    assert found.totals == {NOON - n * HOUR: n + 1 for n in range(hours)}
    assert (found.read_count, waits) == (pages, [0.5] * pages)


def test_a_customer_stripe_does_not_know_has_no_totals(read: Callable[..., Any]) -> None:
    found = read(MIDNIGHT, NOON, None, "cus_nobody")
    assert (found.totals, found.customer_known, found.read_count) == ({}, False, 1)


def test_429_waits_and_asks_again(
    frozen: LocalStripe, report: Any, read: Callable[..., Any], waits: list[float]
) -> None:
    report()
    frozen.add_fault(Fault(kind=FaultKind.RATE_LIMITED, operation="event_summaries.list", times=2))
    assert read(MIDNIGHT, MIDNIGHT + DAY, None).totals == {MIDNIGHT: 1}
    assert waits == [0.5, 1.0, 4.0]


@pytest.mark.parametrize(
    ("kind", "error"), [(FaultKind.ERROR_500, UnavailableError), (FaultKind.FORBIDDEN, NotPermittedError)]
)
def test_what_fails_is_no_total(
    frozen: LocalStripe, read: Callable[..., Any], kind: FaultKind, error: type[Exception]
) -> None:
    frozen.add_fault(Fault(kind=kind, operation="event_summaries.list"))
    with pytest.raises(error):
        read(MIDNIGHT, NOON, None)


def test_totals_of_the_other_mode_are_refused(
    frozen: LocalStripe, report: Any, stripe_sdk: stripe.StripeClient
) -> None:
    assert frozen.url
    report()
    summaries = MeterSummaries(stripe_sdk, "ai_suggestion", livemode=True, pace_per_s=None)
    with pytest.raises(ConfigurationError, match="another mode"):
        summaries.grouped("cus_known", MIDNIGHT, MIDNIGHT + DAY, HOUR)
