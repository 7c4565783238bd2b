"""A local Stripe per test and the official SDK to talk to it.

A server is up in about a millisecond, so tests share no state, not even a clock.
"""

from collections.abc import Callable, Iterator

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 5.0

MakeSdk = Callable[..., stripe.StripeClient]
"""`make(key=None, *, read_timeout_s=5.0)`: a client of `local_stripe`, closed after the test."""


@pytest.fixture
def local_stripe() -> Iterator[LocalStripe]:
    """A running local Stripe with one active `sum` meter, `ai_suggestion`, and no customers, in test mode."""
    with LocalStripe() as server:
        server.create_meter(event_name="ai_suggestion", display_name="AI suggestions")
        yield server


@pytest.fixture
def make_stripe_sdk(local_stripe: LocalStripe, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSdk]:
    """Return what makes SDK clients with every option spelled out: no retries, short time-outs, no telemetry."""
    monkeypatch.setattr(stripe, "enable_telemetry", False)  # would write ~/.config/stripe/telemetry_id
    monkeypatch.setenv("STRIPE_SUPPRESS_NOTICES", "true")  # a Stripe-Notice header becomes a warning, hence an error
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    opened: list[stripe.RequestsClient] = []

    def make(key: str | None = None, *, read_timeout_s: float = READ_TIMEOUT_S) -> stripe.StripeClient:
        http_client = stripe.RequestsClient(timeout=(CONNECT_TIMEOUT_S, read_timeout_s))
        opened.append(http_client)
        return stripe.StripeClient(
            key or local_stripe.api_key,
            base_addresses={"api": local_stripe.url, "meter_events": local_stripe.url},
            http_client=http_client,
            max_network_retries=0,
        )

    yield make
    for http_client in opened:
        http_client.close()  # type: ignore[no-untyped-call]  # the SDK does not annotate it


@pytest.fixture
def stripe_sdk(make_stripe_sdk: MakeSdk) -> stripe.StripeClient:
    """A client of `local_stripe` in test mode."""
    return make_stripe_sdk()
