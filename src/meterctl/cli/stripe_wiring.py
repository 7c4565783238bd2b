"""Stripe as commands use it: whose key it is, how fast to call, what sends events, what reads totals."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from meterctl.clock import Clock, SystemHostClock
from meterctl.core.model import clocks_apart
from meterctl.core.pacing import TokenBucket
from meterctl.dispatch import ThreadedDispatcher
from meterctl.errors import ConfigurationError, UnavailableError
from meterctl.ports import Dispatcher
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.stripe_api.account import answered_livemode, key_account
from meterctl.stripe_api.client import StripeClient
from meterctl.stripe_api.single import SingleEvents
from meterctl.stripe_api.summaries import READS_PER_S, MeterSummaries

if TYPE_CHECKING:
    from meterctl.settings import Settings

RATE_LIVE_PER_S = 800.0
"""Calls a second in live mode: below Stripe's 1,000 for meter events (rate-limit page)."""

RATE_TEST_PER_S = 20.0
"""Calls a second in test mode: meter events count to the basic limit there, 25 a second."""

CONNECTIONS_MAX = 128


def rate_per_s(settings: "Settings") -> float | None:
    """Return the pace of calls; None on loopback, where only the local Stripe sets limits."""
    if settings.stripe.api_base is not None:
        return None
    return RATE_LIVE_PER_S if settings.stripe.mode == "live" else RATE_TEST_PER_S


def key_owner(client: StripeClient, settings: "Settings", clock: Clock) -> LedgerOwner:
    """Return whose ledger it must be. Stripe's first answer also tells the time: a doubt must not look too young."""
    livemode = settings.stripe.mode == "live"
    account = key_account(client, settings.stripe)
    if account.stripe_date is not None and (difference := clocks_apart(account.stripe_date, clock.now())) is not None:
        raise UnavailableError(difference, hint="set the clock that is wrong; nothing is lost; run again")
    answered = answered_livemode(client)
    if answered is not None and answered is not livemode:
        raise ConfigurationError(
            f"Stripe answers in {'live' if answered else 'test'} mode, the run was started for {settings.stripe.mode}",
            hint="check the key and the address of Stripe",
        )
    return LedgerOwner(account=account.id, livemode=livemode)


def dispatchers(
    client: StripeClient, settings: "Settings", host_clock: SystemHostClock
) -> Callable[[], AbstractContextManager[Dispatcher]]:
    """Return what opens a dispatcher for one meter; all share one pace."""
    bucket = TokenBucket(rate_per_s(settings))

    @contextmanager
    def open_dispatcher() -> Iterator[Dispatcher]:
        dispatcher = ThreadedDispatcher(SingleEvents(client), bucket, host_clock, in_flight_max=CONNECTIONS_MAX)
        try:
            yield dispatcher
        finally:
            dispatcher.close()

    return open_dispatcher


def summaries(client: StripeClient, settings: "Settings", event_name: str) -> MeterSummaries:
    """Return Stripe's totals of a meter, read at its pace; at none on loopback."""
    pace_per_s = READS_PER_S if settings.stripe.api_base is None else None
    livemode = settings.stripe.mode == "live"
    return MeterSummaries(client, event_name, livemode=livemode, pace_per_s=pace_per_s)
