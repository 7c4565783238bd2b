"""The official SDK against the local Stripe, with one customer and short words for one call."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

Report = Callable[..., Any]
"""`report(identifier=None, value="1", customer="cus_known", *, key=None, sdk=None, **other parameters)`."""


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where this folder is run without the conftest above it."""
    if not config.pluginmanager.has_plugin("stripe_fixtures"):
        config.pluginmanager.import_plugin("stripe_fixtures")


@pytest.fixture
def frozen(local_stripe: LocalStripe) -> LocalStripe:
    """The local Stripe with its clock standing at NOW, and the customer `cus_known`."""
    local_stripe.clock.set(NOW, frozen=True)
    local_stripe.create_customer("cus_known")
    return local_stripe


@pytest.fixture
def report(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> Report:
    """Return what sends one meter event through the SDK."""
    assert frozen.url

    def send(
        identifier: str | None = None,
        value: str = "1",
        customer: str = "cus_known",
        *,
        key: str | None = None,
        sdk: stripe.StripeClient | None = None,
        **other: Any,
    ) -> Any:
        params: dict[str, Any] = {
            "event_name": "ai_suggestion",
            "payload": {"stripe_customer_id": customer, "value": value},
            **({} if identifier is None else {"identifier": identifier}),
            **other,
        }
        options: Any = {} if key is None else {"idempotency_key": key}
        call: Any = (sdk or stripe_sdk).v1.billing.meter_events.create  # params and options are typed dicts
        return call(params, options)

    return send
