"""Whose key it is: asked once per run, before the first write."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import stripe

from meterctl.errors import ConfigurationError, NotPermittedError
from meterctl.settings.model import StripeSettings
from meterctl.stripe_api.asking import asked
from meterctl.stripe_api.date import answered_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Whose key it is, and what Stripe's clock said then: aware UTC; None where the answer did not tell."""

    id: str
    stripe_date: datetime | None


def key_account(client: stripe.StripeClient, settings: StripeSettings) -> Account:
    """Return the account the key belongs to. Raises the MeterctlError that fits; refuses another than configured."""
    try:
        found = asked(lambda: client.v1.accounts.retrieve_current({}, {"max_network_retries": 0}))
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
    """Return the `livemode` Stripe's answers carry with this key; None where no meter can be asked about.

    Raises the MeterctlError that fits, but for a key that may only not list meters.
    """
    try:
        meters = asked(lambda: client.v1.billing.meters.list({"limit": 1}, {"max_network_retries": 0}).data)
    except NotPermittedError as error:
        if isinstance(error.__cause__, stripe.AuthenticationError):
            raise
        return None  # every meter event's own answer is checked as well
    return meters[0].livemode if meters else None
