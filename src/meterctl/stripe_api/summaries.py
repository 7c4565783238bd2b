"""Stripe's own totals: `GET /v1/billing/meters/{id}/event_summaries`."""

import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, cast

import stripe

from meterctl.errors import ConfigurationError, UnavailableError
from meterctl.ports import Reading
from meterctl.stripe_api.asking import asked
from meterctl.stripe_api.date import answered_at

READS_PER_S = 10.0
"""Pace of reads: well below Stripe's 25 a second in test mode, which everything else shares (rate-limit page)."""

THROTTLED_WAITS_S = (1.0, 4.0, 16.0)
"""Waits before a read that Stripe answered with 429 is tried again."""


class MeterSummaries:
    """`Totals` of the meter `event_name`. `pace_per_s` None: as fast as the far side answers."""

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
        """Return the total of [start, end), whole minutes. One read. Raises the MeterctlError that fits."""
        self._sleep(self._wait_s)
        answer = asked(lambda: self._read(customer, start, end))
        if any(summary.livemode is not self._livemode for summary in answer.data):
            raise ConfigurationError("Stripe's totals are of another mode than the run was started for")
        return Reading(
            # The shortest text of a double is what Stripe wrote; no usage is no row, or a row of 0.
            total=sum((Decimal(repr(summary.aggregated_value)) for summary in answer.data), Decimal(0)),
            stripe_date=answered_at(cast("Any", answer).last_response.headers),
        )

    def _read(self, customer: str, start: datetime, end: datetime) -> stripe.ListObject[Any]:
        for wait_s in THROTTLED_WAITS_S:
            try:
                return self._list(customer, start, end)
            except stripe.RateLimitError:
                self._sleep(wait_s)
        return self._list(customer, start, end)

    def _list(self, customer: str, start: datetime, end: datetime) -> stripe.ListObject[Any]:
        return self._client.v1.billing.meters.event_summaries.list(
            self._meter_id,
            {"customer": customer, "start_time": int(start.timestamp()), "end_time": int(end.timestamp())},
            {"max_network_retries": 0},
        )

    @cached_property
    def _meter_id(self) -> str:
        meters = self._client.v1.billing.meters.list({"limit": 100}, {"max_network_retries": 0})
        found = [meter for meter in meters.auto_paging_iter() if meter.event_name == self._event_name]
        if not found:
            raise UnavailableError(f"Stripe has no meter {self._event_name}, so it has no totals of it")
        return max(found, key=lambda meter: meter.status == "active").id
