"""Stripe's meters and their prices: `GET /v1/billing/meters`, `GET /v1/prices`."""

from typing import Any

import stripe

from meterctl.core.meter_check import StripeMeter
from meterctl.stripe_api.asking import asked

PAGE_MAX = 100


class StripeMeters:
    """`MeterCatalog` of the key's account and mode."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._client = client

    def meters(self) -> list[StripeMeter]:
        """Return all meters, deactivated ones too. Raises the MeterctlError that fits."""
        listed = self._client.v1.billing.meters.list
        return asked(
            lambda: [_meter(one) for one in listed({"limit": PAGE_MAX}, {"max_network_retries": 0}).auto_paging_iter()]
        )

    def is_priced(self, meter_id: str) -> bool:
        """Return whether an active price is linked to the meter. Raises the MeterctlError that fits."""
        wanted: Any = {"active": True, "recurring": {"meter": meter_id}, "limit": 1}
        prices = asked(lambda: self._client.v1.prices.list(wanted, {"max_network_retries": 0}).data)
        return any(price.recurring is not None and price.recurring.meter == meter_id for price in prices)


def _meter(found: stripe.billing.Meter) -> StripeMeter:
    return StripeMeter(
        id=found.id,
        event_name=found.event_name,
        active=found.status == "active",
        formula=found.default_aggregation.formula,
        customer_key=found.customer_mapping.event_payload_key,
        value_key=found.value_settings.event_payload_key,
        event_time_window=found.event_time_window,
        livemode=found.livemode,
    )
