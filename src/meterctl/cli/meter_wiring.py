"""A meter's adapters for one run: where usage is read, the ledger it goes to, and how its old doubts are settled."""

from dataclasses import dataclass
from datetime import UTC, datetime

from meterctl.actions.meter_report import MeterJob
from meterctl.ports import Totals, UsageSource
from meterctl.postgres.counter import PostgresCounter
from meterctl.postgres.ledger import PostgresMeterLedger
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.settlements import PostgresSettlements
from meterctl.postgres.sources import Sources
from meterctl.settings import GaugeMeter, MeterSettings, RowsMeter

ALWAYS = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterWiring:
    """Makes the adapters of any meter for the run `run_id`; 0 where none is recorded."""

    sources: Sources
    run_id: int = 0

    def job(self, key: str, totals: Totals, *, row_ids: tuple[str, ...] = ()) -> MeterJob:
        """Return the meter's part of the run. `totals` are Stripe's."""
        meter, source = self.sources.settings.meters[key], self.sources.of(key)
        return MeterJob(
            event_name=meter.event_name,
            source=source,
            ledger=self.ledger(key, source, row_ids=row_ids),
            settlements=self.settlements(key),
            totals=totals,
            adopt_identifiers_until=_adopted_until(meter),
            tidy=source.tidy if isinstance(source, PostgresCounter) else lambda _: None,
        )

    def ledger(self, key: str, source: UsageSource, *, row_ids: tuple[str, ...] = ()) -> PostgresMeterLedger:
        """Return the meter's ledger as the run sees it."""
        meter = self.sources.settings.meters[key]
        return PostgresMeterLedger(
            self.sources.connection,
            meter=key,
            event_name=meter.event_name,
            run_id=self.run_id,
            stamp_rows=lambda ids, now: source.stamp(ids, now=now) if isinstance(source, PostgresRows) else 0,
            row_ids=row_ids,
            keeps_last=meter.formula == "last",
        )

    def settlements(self, key: str) -> PostgresSettlements:
        """Return the meter's old doubts."""
        meter = self.sources.settings.meters[key]
        return PostgresSettlements(
            self.sources.connection, event_name=meter.event_name, formula=meter.formula, run_id=self.run_id
        )


def _adopted_until(meter: MeterSettings) -> datetime | None:
    """Return until when an identifier that Stripe has already counts as reported.

    Always, of a level: nobody but us makes its identifier, though perhaps in a past that the database has lost. What it
    was then, the next step replaces.
    """
    if isinstance(meter, GaugeMeter):
        return ALWAYS
    return meter.adopt_identifiers_until if isinstance(meter, RowsMeter) else None
