"""Whose key it is: asked once per run, before the first write."""

from collections.abc import Callable
from typing import TypeVar

import stripe

from meterctl.errors import ConfigurationError, MeterctlError, NotPermittedError, UnavailableError
from meterctl.settings.model import StripeSettings

T = TypeVar("T")


def account_id(client: stripe.StripeClient, settings: StripeSettings) -> str:
    """Return the account the key belongs to. Raises the MeterctlError that fits; refuses another than configured."""
    try:
        account = _asked(lambda: client.v1.accounts.retrieve_current({}, {"max_network_retries": 0}).id)
    except NotPermittedError:
        if settings.account is None:
            raise
        # A restricted key need not be able to read the account; the operator has stated it.
        account = settings.account
    if settings.account is not None and account != settings.account:
        raise ConfigurationError(
            f"the key belongs to account {account}, the configuration allows only {settings.account}",
            hint="correct stripe.account or use the other key",
        )
    return account


def answered_livemode(client: stripe.StripeClient) -> bool | None:
    """Return the `livemode` Stripe's answers carry with this key; None where there is no meter to ask about."""
    try:
        meters = _asked(lambda: client.v1.billing.meters.list({"limit": 1}, {"max_network_retries": 0}).data)
    except NotPermittedError:
        return None  # every meter event's own answer is checked as well
    return meters[0].livemode if meters else None


def _asked(call: Callable[[], T]) -> T:
    try:
        return call()
    except stripe.AuthenticationError as error:
        raise NotPermittedError("Stripe refuses the key (401)", hint="check STRIPE_SECRET_KEY") from error
    except stripe.PermissionError as error:
        raise NotPermittedError(
            f"Stripe forbids this to the key (403): {error.user_message}",
            hint="give the restricted key the permissions README, section Set up Stripe, lists",
        ) from error
    except stripe.StripeError as error:
        raise _unavailable(error) from error


def _unavailable(error: stripe.StripeError) -> MeterctlError:
    what = f"HTTP {error.http_status}" if error.http_status else "no answer"
    return UnavailableError(f"Stripe is away ({what})", hint="nothing is lost; run again")
