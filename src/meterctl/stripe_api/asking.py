"""Questions to Stripe: what its errors mean for the command that asked."""

from collections.abc import Callable
from typing import TypeVar

import stripe

from meterctl.errors import NotPermittedError, RefusedError, UnavailableError

T = TypeVar("T")


THROTTLED_WAITS_S = (1.0, 4.0, 16.0)
"""Waits before a read that Stripe answered with 429 is tried again."""


def asked(call: Callable[[], T], *, sleep: Callable[[float], object] | None = None) -> T:
    """Return what Stripe answers. With `sleep` a question that was throttled is asked again, three times.

    Raises NotPermittedError (401, 403), RefusedError (400, 404), UnavailableError for every other failure.
    """
    try:
        return call() if sleep is None else _patiently(call, sleep)
    except stripe.AuthenticationError as error:
        raise NotPermittedError("Stripe refuses the key (401)", hint="check STRIPE_SECRET_KEY") from error
    except stripe.PermissionError as error:
        raise NotPermittedError(
            f"Stripe forbids this to the key (403): {error.user_message}",
            hint="give the restricted key the permissions README, section Set up Stripe, lists",
        ) from error
    except stripe.InvalidRequestError as error:
        raise RefusedError(
            f"Stripe refuses to say (HTTP {error.http_status}): {error.user_message}", hint="nothing is lost; run again"
        ) from error
    except stripe.StripeError as error:
        what = f"HTTP {error.http_status}" if error.http_status else "no answer"
        raise UnavailableError(f"Stripe is away ({what})", hint="nothing is lost; run again") from error


def _patiently(call: Callable[[], T], sleep: Callable[[float], object]) -> T:
    for wait_s in THROTTLED_WAITS_S:
        try:
            return call()
        except stripe.RateLimitError:
            sleep(wait_s)
    return call()
