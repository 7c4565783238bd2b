"""Both sides of a run, the database and Stripe, opened and found to fit before anything is written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from meterctl.cli.stripe_wiring import CONNECTIONS_MAX, key_owner
from meterctl.cli.wiring import open_database
from meterctl.clock import SystemHostClock
from meterctl.postgres.check import require_fit
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.identity import require_owner
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.stripe_api.client import StripeClient, stripe_client

if TYPE_CHECKING:
    from meterctl.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class FarSides:
    """The database and Stripe as one run has them; `owner` is the account and mode of the key."""

    settings: "Settings"
    connection: Connection
    client: StripeClient
    host_clock: SystemHostClock
    clock: PostgresClock
    owner: LedgerOwner

    @property
    def grace(self) -> timedelta:
        """How long after its period's end usage still reaches the invoice."""
        return timedelta(hours=self.settings.stripe.invoice_grace_h)


@contextmanager
def far_sides(settings: "Settings", keys: Sequence[str]) -> Iterator[FarSides]:
    """Open both. Raises the MeterctlError that fits where account, mode or the meters' tables do not."""
    host_clock = SystemHostClock()
    with open_database(settings) as connection:
        require_fit(connection, settings, keys)
        client = stripe_client(settings.stripe, connections_max=CONNECTIONS_MAX)
        clock = PostgresClock(connection, host_clock)
        owner = key_owner(client, settings, clock)
        require_owner(connection, owner)
        yield FarSides(
            settings=settings, connection=connection, client=client, host_clock=host_clock, clock=clock, owner=owner
        )
