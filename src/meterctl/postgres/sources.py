"""What reads a meter's usage, by the kind of its source."""

from dataclasses import dataclass, field

from meterctl.core.level import LevelRequest
from meterctl.postgres.connect import Connection
from meterctl.postgres.counter import PostgresCounter
from meterctl.postgres.gauge import PostgresGauge
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import CounterMeter, RowsMeter, Settings

NOBODY = LedgerOwner(account="", livemode=False)
"""For reading alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Makes the source of any meter. `owner` is whose ledger it is; `level` and `open_too` are what was asked for."""

    connection: Connection
    settings: Settings
    owner: LedgerOwner = NOBODY
    level: LevelRequest = field(default_factory=LevelRequest)
    open_too: bool = False

    def of(self, key: str) -> PostgresRows | PostgresCounter | PostgresGauge:
        """Return the source of the meter with this key in the configuration.

        Rows also know all configured meters: open events of any other keep their rows from being billed anew.
        """
        meter, lookups = self.settings.meters[key], self.settings.lookups
        if isinstance(meter, RowsMeter):
            names = [one.event_name for one in self.settings.meters.values()]
            return PostgresRows(self.connection, key, meter, lookups, self.owner, event_names=names)
        if isinstance(meter, CounterMeter):
            return PostgresCounter(self.connection, key, meter, lookups, self.owner, open_too=self.open_too)
        return PostgresGauge(self.connection, key, meter, lookups, self.owner, self.level)
