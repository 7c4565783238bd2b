"""Stripe's own totals: `GET /v1/billing/meters/{id}/event_summaries`."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, TypeGuard, cast

import stripe

from meterctl.core.spans import DAY, HOUR, PAGE_MAX
from meterctl.errors import ConfigurationError, UnavailableError
from meterctl.ports import GroupedReading, Reading
from meterctl.stripe_api.asking import asked
from meterctl.stripe_api.date import answered_at

READS_PER_S = 10.0
"""Pace of reads: well below Stripe's 25 a second in test mode, which everything else shares (rate-limit page)."""

WINDOW_NAMES = {HOUR: "hour", DAY: "day"}


class MeterSummaries:
    """`Totals` and `GroupedTotals` of the meter `event_name`. `pace_per_s` None: as fast as the far side answers.

    A meter that was deactivated and made anew keeps what it took: the totals of all of that event_name are added up.
    """

    def __init__(
        self,
        client: stripe.StripeClient,
        event_name: str,
        *,
        livemode: bool,
        pace_per_s: float | None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._event_name = event_name
        self._livemode = livemode
        self._wait_s = 1 / pace_per_s if pace_per_s else 0.0
        self._sleep = sleep

    def total(self, customer: str, start: datetime, end: datetime) -> Reading:
        """Return the total of [start, end), whole minutes. One read a meter. Raises the MeterctlError that fits.

        A customer that Stripe does not know has used nothing: it drops such usage after its 200, and says so.
        """
        try:
            answers = [self._asked(meter_id, _range(customer, start, end)) for meter_id in self._meter_ids]
        except UnavailableError as error:
            refusal = error.__cause__
            if not _says_unknown_customer(refusal):
                raise
            return Reading(total=Decimal(0), stripe_date=answered_at(refusal.headers))
        values = [summary.aggregated_value for answer in answers for summary in answer.data]
        return Reading(
            # The shortest text of a double is what Stripe wrote; no usage is no row, or a row of 0.
            total=sum((Decimal(repr(value)) for value in values), Decimal(0)),
            stripe_date=answered_at(cast("Any", answers[-1]).last_response.headers),
        )

    def grouped(self, customer: str, start: datetime, end: datetime, unit: timedelta | None) -> GroupedReading:
        """Return the totals of [start, end) by its hours or UTC days, on whose bounds it lies; by none: as one total.

        Each page is one read. Raises the MeterctlError that fits.
        """
        grouping = {} if unit is None else {"value_grouping_window": WINDOW_NAMES[unit], "limit": PAGE_MAX}
        totals: dict[datetime, Decimal] = {}
        read_count = 0
        try:
            for page in self._pages(_range(customer, start, end) | grouping):
                read_count += 1
                for summary in page:
                    window = start if unit is None else datetime.fromtimestamp(summary.start_time, UTC)
                    totals[window] = totals.get(window, Decimal(0)) + Decimal(repr(summary.aggregated_value))
        except UnavailableError as error:
            if not _says_unknown_customer(error.__cause__):
                raise
            return GroupedReading(totals={}, read_count=read_count + 1, customer_known=False)
        return GroupedReading(totals=totals, read_count=read_count)

    def _pages(self, params: Mapping[str, Any]) -> Iterator[list[Any]]:
        for meter_id in self._meter_ids:
            cursor: dict[str, str] = {}
            while True:
                answer = self._asked(meter_id, {**params, **cursor})
                yield answer.data
                if not answer.has_more or not answer.data:
                    break
                cursor = {"starting_after": answer.data[-1].id}

    def _asked(self, meter_id: str, params: Mapping[str, Any]) -> stripe.ListObject[Any]:
        self._sleep(self._wait_s)
        answer = asked(lambda: self._list(meter_id, params), sleep=self._sleep)
        if any(summary.livemode is not self._livemode for summary in answer.data):
            raise ConfigurationError("Stripe's totals are of another mode than the run was started for")
        return answer

    def _list(self, meter_id: str, params: Mapping[str, Any]) -> stripe.ListObject[Any]:
        listed = self._client.v1.billing.meters.event_summaries.list
        return listed(meter_id, cast("Any", params), {"max_network_retries": 0})

    @cached_property
    def _meter_ids(self) -> list[str]:
        return asked(self._found_ids, sleep=self._sleep)

    def _found_ids(self) -> list[str]:
        meters = self._client.v1.billing.meters.list({"limit": 100}, {"max_network_retries": 0})
        found = [meter for meter in meters.auto_paging_iter() if meter.event_name == self._event_name]
        if not found:
            raise UnavailableError(f"Stripe has no meter {self._event_name}, so it has no totals of it")
        return [meter.id for meter in found]


def _range(customer: str, start: datetime, end: datetime) -> dict[str, Any]:
    return {"customer": customer, "start_time": int(start.timestamp()), "end_time": int(end.timestamp())}


def _says_unknown_customer(error: BaseException | None) -> TypeGuard[stripe.InvalidRequestError]:
    if not isinstance(error, stripe.InvalidRequestError):
        return False
    return error.code == "resource_missing" and error.param == "customer"
