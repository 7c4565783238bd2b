"""The SDK's client with every option spelled out: its defaults are silent retries, 80 s and random keys."""

import os

import stripe

from meterctl.errors import ConfigurationError
from meterctl.settings.model import StripeSettings
from meterctl.stripe_api.http import Urllib3Client

API_VERSION = "2026-10-28.endive"
"""The version stripe-python 16.1.0 pins; named here so that an upgrade of the SDK does not change answers by itself."""

StripeClient = stripe.StripeClient
"""What commands hand to the adapters, without a need to know the SDK."""

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0


def stripe_client(
    settings: StripeSettings, *, connections_max: int, read_timeout_s: float = READ_TIMEOUT_S
) -> stripe.StripeClient:
    """Return a client that makes exactly one HTTP call for each of ours. One may be shared by many threads."""
    if settings.api_key is None:
        raise no_key()
    stripe.enable_telemetry = False
    os.environ.setdefault("STRIPE_SUPPRESS_NOTICES", "true")  # else a response header becomes a Python warning
    return stripe.StripeClient(
        settings.api_key.get_secret_value(),
        stripe_version=API_VERSION,
        base_addresses={
            "api": settings.api_base or stripe.DEFAULT_API_BASE,
            "meter_events": settings.meter_events_base or stripe.DEFAULT_METER_EVENTS_API_BASE,
        },
        max_network_retries=0,
        http_client=Urllib3Client(
            settings.api_base or stripe.DEFAULT_API_BASE,
            connections_max=connections_max,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            read_timeout_s=read_timeout_s,
        ),
    )


def no_key() -> ConfigurationError:
    """Return what to say where Stripe must be asked and no key is set."""
    return ConfigurationError("no Stripe key is set", hint="set STRIPE_SECRET_KEY or STRIPE_SECRET_KEY_FILE")
