"""What the doctor asks of the database. Imported by the command, for it imports psycopg."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property

from meterctl.actions import first_night
from meterctl.actions.collect import row_window
from meterctl.actions.doctor import Check
from meterctl.clock import SystemHostClock
from meterctl.core.diagnosis import Finding, Status, passed, skipped, warned
from meterctl.errors import ExitCode
from meterctl.postgres import doctor, inspection, plans
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection, connect
from meterctl.postgres.counter import PostgresCounter
from meterctl.postgres.gauge import PostgresGauge
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.sources import Sources
from meterctl.settings import MeterSettings, Settings


@dataclass(kw_only=True)
class DatabaseSide:
    """The database; its connection is there once it has been opened, and closed with `stack`."""

    settings: Settings
    stack: ExitStack
    _connection: Connection | None = field(default=None)

    @property
    def connection(self) -> Connection:
        """The open connection; what needs it needs the check that opens it."""
        assert self._connection is not None  # noqa: S101 -- `checks` says what needs what
        return self._connection

    def now(self) -> datetime:
        """Return PostgreSQL's instant."""
        return PostgresClock(self.connection, SystemHostClock()).now()

    def checks(self) -> list[Check]:
        """Return the checks of server, role, schema and tables, the one that connects first."""
        needs = ("database",)
        return [
            Check(name="database", ask=self._server),
            Check(name="replica", ask=self._primary, needs=needs),
            Check(name="role", ask=lambda: doctor.role(self.connection), needs=needs),
            Check(name="schema", ask=lambda: inspection.ledger_schema(self.connection), needs=needs),
            Check(name="tables", ask=self._tables, needs=needs),
            Check(name="indexes", ask=lambda: inspection.indexes(self.connection, self.settings), needs=needs),
            Check(name="plans", ask=self._plans, needs=("database", "schema")),
            Check(name="triggers", ask=lambda: doctor.triggers(self.connection, self.settings), needs=needs),
            Check(name="lock", ask=self._lock, needs=needs),
        ]

    def _server(self) -> Iterator[Finding]:
        conninfo = self.settings.database_url.get_secret_value()
        self._connection = self.stack.enter_context(connect(conninfo))
        yield inspection.server_version(self._connection)

    def _primary(self) -> Iterator[Finding]:
        """A standby does for looking at things, and not for a report."""
        found = [
            replace(finding, status=Status.FAIL, code=ExitCode.CONFIGURATION)
            for finding in inspection.standby(self.connection)
        ]
        yield from found or [passed("the server takes writes")]

    def _tables(self) -> Iterator[Finding]:
        yield from inspection.fit(self.connection, self.settings)
        yield from inspection.counting(self.connection, self.settings)

    def _lock(self) -> Iterator[Finding]:
        return doctor.lock(self.settings.database_url.get_secret_value(), SystemHostClock())

    @cached_property
    def _fitting(self) -> dict[str, MeterSettings]:
        return doctor.fitting_meters(self.connection, self.settings)

    @cached_property
    def _sources(self) -> dict[str, PostgresRows | PostgresCounter | PostgresGauge]:
        sources = Sources(connection=self.connection, settings=self.settings)
        return {key: sources.of(key) for key in self._fitting}

    def _unfit(self) -> Iterator[Finding]:
        for key in self.settings.enabled_meters:
            if key not in self._fitting:
                yield skipped(f"the tables of meter {key} do not fit, see above")

    def _plans(self) -> Iterator[Finding]:
        now, sources = self.now(), self._sources
        with doctor.without_seqscan(self.connection):
            for source in sources.values():
                if isinstance(source, PostgresRows):
                    plan = source.explain(row_window(now, recent=None), batch_size=plans.PAGE)
                    yield plans.collecting(plan, source.table_name)
            for key, meter in self._fitting.items():
                yield plans.claiming(doctor.claim_plan(self.connection, key, meter, now), meter.event_name)
        yield from self._unfit()

    def usage_checks(self, *, times: Sequence[str], runs: Sequence[int]) -> list[Check]:
        """Return the checks of what waits, and of what the schedule would miss."""
        return [
            Check(name="waiting", ask=self._waiting, needs=("database", "schema")),
            Check(name="periods", ask=lambda: self._periods(times, runs), needs=("database", "schema")),
        ]

    def _waiting(self) -> Iterator[Finding]:
        window = first_night.waiting_window(row_window(self.now(), recent=None))
        for source in self._sources.values():
            if not isinstance(source, PostgresGauge):  # a level is what it is now
                yield from first_night.waiting_rows(source.uncollected(window), source.table_name)
        yield from self._unfit()

    def _periods(self, times: Sequence[str], runs: Sequence[int]) -> Iterator[Finding]:
        names = dict.fromkeys(payer.lookup for meter in self._fitting.values() for payer in meter.payers)
        dated = [name for name in names if self.settings.lookups[name].period_end is not None]
        for name in names.keys() - set(dated):
            where = self.settings.where(f"lookups.{name}")
            yield warned(f"{where}: no period_end: what is late cannot be told", "name the column, if there is one")
        if dated:
            lookups = [self.settings.lookups[name] for name in dated]
            ends = doctor.renewals(self.connection, lookups, self.now(), first_night.RENEWALS_WITHIN)
            grace = timedelta(hours=self.settings.stripe.invoice_grace_h)
            yield from first_night.renewals(ends, runs=runs, times=times, grace=grace)
        yield from self._unfit()
