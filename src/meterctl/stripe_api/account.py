"""Whose key it is: asked once per run, before the first write."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

import stripe

from meterctl.errors import ConfigurationError, MeterctlError, NotPermittedError, UnavailableError
from meterctl.settings.model import StripeSettings
from meterctl.stripe_api.date import answered_at

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Whose key it is, and what Stripe's clock said then: aware UTC; None where the answer did not tell."""

    id: str
    stripe_date: datetime | None


def key_account(client: stripe.StripeClient, settings: StripeSettings) -> Account:
    """Return the account the key belongs to. Raises the MeterctlError that fits; refuses another than configured."""
    try:
        found = _asked(lambda: client.v1.accounts.retrieve_current({}, {"max_network_retries": 0}))
        account = Account(id=found.id, stripe_date=answered_at(cast("Any", found).last_response.headers))
    except NotPermittedError as error:
        if settings.account is None:
            raise
        # A restricted key need not be able to read the account; the operator has stated it.
        answer = cast("stripe.StripeError", error.__cause__)
        account = Account(id=settings.account, stripe_date=answered_at(answer.headers))
    if settings.account is not None and account.id != settings.account:
        raise ConfigurationError(
            f"the key belongs to account {account.id}, the configuration allows only {settings.account}",
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
