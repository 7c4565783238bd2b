"""Whether the database fits the configuration: every report asks before its first write, `db check` shows it all.

What does not fit is gathered over all meters and told at once, a line each, beginning with the place in the
configuration that names it. A few queries of the catalogs find it; no row is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import errors as pg
from psycopg import sql

from meterctl.errors import ConfigurationError, NotPermittedError
from meterctl.ports import RowWindow
from meterctl.postgres.catalog import ColumnInfo, Parts, TableInfo, current_role, fetch, find_tables, table_names
from meterctl.postgres.connect import transaction
from meterctl.postgres.migrate import ledger_grants
from meterctl.postgres.misfits import LEDGER, Misfit, missing_table, table_misfits
from meterctl.postgres.queries import query
from meterctl.postgres.refusals import refusal, refused_condition, said, unknown_zone
from meterctl.postgres.sources import Sources
from meterctl.postgres.wanted import WantedTable, wanted_of_lookup, wanted_of_meter
from meterctl.settings import CounterMeter, MeterSettings, RowsMeter, Settings
from meterctl.settings.problems import dotted

_COMPARABLE = (
    {"smallint", "integer", "bigint", "numeric", "real", "double precision"},
    {"text", "character varying", "character"},
    {"uuid"},
)
"""Types that `=` compares with each other; about other pairs PostgreSQL is asked."""

_SOME_INSTANT = datetime(2000, 1, 1, tzinfo=UTC)
_NO_ROWS = RowWindow(since=_SOME_INSTANT, until=_SOME_INSTANT, fresh_from=_SOME_INSTANT, expired_before=_SOME_INSTANT)


def require_fit(connection: psycopg.Connection, settings: Settings, keys: Sequence[str] | None = None) -> None:
    """Raise ConfigurationError if the database does not fit the meters, NotPermittedError if only privileges lack."""
    raise_for(misfits(connection, settings, keys))


def raise_for(found: Sequence[Misfit], *, hint: str | None = None) -> None:
    """Raise the same for misfits that have been found, if any."""
    if not found:
        return
    lines = tuple(misfit.line for misfit in found)
    if all(misfit.privilege for misfit in found):
        raise NotPermittedError("\n  ".join(("the role lacks privileges in the database", *lines)), hint=hint)
    raise ConfigurationError("the database does not fit the configuration", problems=lines, hint=hint)


def configuration_problems(
    connection: psycopg.Connection, settings: Settings, *, keys: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return, a line each, all in the database that does not fit the enabled meters, or those of `keys`."""
    return tuple(misfit.line for misfit in misfits(connection, settings, keys))


def misfits(
    connection: psycopg.Connection, settings: Settings, keys: Sequence[str] | None = None
) -> tuple[Misfit, ...]:
    """Return the same with what `db check` needs to know besides the line."""
    meters = {key: meter for key, meter in settings.enabled_meters.items() if keys is None or key in keys}
    with transaction(connection, read_only=True):
        view = _View.of(connection, settings, meters)
        found = [
            *view.ledger_misfits(),
            *view.table_misfits(),
            *view.payer_misfits(),
            *view.zone_misfits(),
            *view.condition_misfits(),
        ]
    faulty = {misfit.section for misfit in found}
    if view.has_ledger and LEDGER not in faulty:
        found += (m for key in meters if not view.sections(key) & faulty for m in view.plan_misfits(key))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _View:
    """The configuration beside what the catalogs say about it."""

    connection: psycopg.Connection
    settings: Settings
    meters: Mapping[str, MeterSettings]
    usage: Mapping[str, WantedTable]
    lookups: Mapping[str, WantedTable]
    tables: Mapping[Parts, TableInfo]
    role: str
    ledger_lacks: Sequence[tuple[str | None, str | None]]
    has_ledger: bool

    @classmethod
    def of(cls, connection: psycopg.Connection, settings: Settings, meters: Mapping[str, MeterSettings]) -> "_View":
        read = {key: meter for key, meter in meters.items() if not isinstance(meter, CounterMeter)}
        usage = {key: wanted_of_meter(key, meter) for key, meter in read.items()}
        names = dict.fromkeys(payer.lookup for meter in meters.values() for payer in meter.payers)
        lookups = {name: wanted_of_lookup(name, settings.lookups[name]) for name in names}
        ledger = fetch(connection, query("catalog", "ledger_privileges"))
        lacks = [(row["table"], row["privilege"]) for row in ledger if row["table"] or not row["schema_usable"]]
        return cls(
            connection=connection,
            settings=settings,
            meters=meters,
            usage=usage,
            lookups=lookups,
            tables=find_tables(connection, [wanted.parts for wanted in (*usage.values(), *lookups.values())]),
            role=current_role(connection),
            ledger_lacks=lacks,
            has_ledger=bool(ledger),
        )

    def sections(self, key: str) -> set[str]:
        """Return the sections of the configuration that a meter depends on."""
        return {dotted(("meters", key)), *(self.lookups[p.lookup].section for p in self.meters[key].payers)}

    def ledger_misfits(self) -> Iterator[Misfit]:
        if self.ledger_lacks:
            by_table: dict[str, list[str]] = {}
            for table, privilege in self.ledger_lacks:
                by_table.setdefault(table or "", []).append(privilege or "USAGE")
            lacking = "; ".join(f"{', '.join(lacks)} on {table or 'it'}" for table, lacks in by_table.items())
            line = f"{LEDGER}: role {self.role} lacks {lacking}; {' '.join(ledger_grants(self.role))}"
            yield Misfit(section=LEDGER, line=line, privilege=True)

    def table_misfits(self) -> Iterator[Misfit]:
        wanted = [*self.usage.values(), *self.lookups.values()]
        some_missing = any(one.parts not in self.tables for one in wanted)
        names = table_names(self.connection) if some_missing else []
        for one in wanted:
            table = self.tables.get(one.parts)
            if table is None:
                yield missing_table(one, names, self.role, self.settings.where)
            else:
                yield from table_misfits(one, table, self.role, self.settings.where)

    def payer_misfits(self) -> Iterator[Misfit]:
        """Yield the payers whose column cannot be compared with the lookup's subject."""
        for key, wanted in self.usage.items():
            for position, payer in enumerate(self.meters[key].payers):
                lookup = self.settings.lookups[payer.lookup]
                used = self._column(wanted, payer.column)
                subject = self._column(self.lookups[payer.lookup], lookup.subject)
                if used is None or subject is None or self._comparable(used.base_type, subject.base_type):
                    continue
                where = self.settings.where(f"{wanted.section}.payers[{position}].column")
                what = (
                    f'"{payer.column}" of {wanted.name} is {used.type}, "{lookup.subject}" of {lookup.table} '
                    f"({dotted(('lookups', payer.lookup))}.subject) is {subject.type}, and PostgreSQL cannot compare "
                    f"them; name a view of {lookup.table} with {lookup.subject}::{used.type} instead"
                )
                yield Misfit(section=wanted.section, line=f"{where}: {what}")

    def _column(self, wanted: WantedTable, name: str) -> ColumnInfo | None:
        table = self.tables.get(wanted.parts)
        return table.columns.get(name) if table else None

    def _comparable(self, left: str, right: str) -> bool:
        if any({left, right} <= kind for kind in _COMPARABLE):
            return True
        # Types as the catalogs print them are quoted where they must be: safe to stand in SQL.
        types = {"left": sql.SQL(left), "right": sql.SQL(right)}
        compare = sql.SQL(query("catalog", "comparable")).format(**types)
        return refusal(self.connection, lambda: self.connection.execute(compare)) is None

    def condition_misfits(self) -> Iterator[Misfit]:
        """Yield each `where` that PostgreSQL refuses, tried apart from the rest so that it is told with the rest."""
        for key, wanted in self.usage.items():
            meter, table = self.meters[key], self.tables.get(wanted.parts)
            if isinstance(meter, CounterMeter) or meter.where is None or table is None:
                continue
            error = refused_condition(self.connection, wanted.parts, meter.where)
            if error is not None:
                yield self._refused(wanted.section, "where", error, table)

    def zone_misfits(self) -> Iterator[Misfit]:
        """Yield the time zones that PostgreSQL does not know."""
        rows = {key: meter for key, meter in self.meters.items() if isinstance(meter, RowsMeter)}
        zones = {self.usage[key].section: meter.time_zone for key, meter in rows.items()}
        zones |= {wanted.section: self.settings.lookups[name].time_zone for name, wanted in self.lookups.items()}
        for section, time_zone in zones.items():
            what = unknown_zone(self.connection, time_zone) if time_zone is not None else None
            if what is not None:
                yield Misfit(section=section, line=f"{self.settings.where(f'{section}.time_zone')}: {what}")

    def plan_misfits(self, key: str) -> Iterator[Misfit]:
        """Yield what PostgreSQL says against the statement that collects, which nothing above foresaw."""
        source = Sources(connection=self.connection, settings=self.settings).of(key)
        with transaction(self.connection, read_only=True):
            error = refusal(self.connection, lambda: source.explain(_NO_ROWS))
        if error is not None:
            yield self._refused(dotted(("meters", key)), "table", error, self._table(key))

    def _table(self, key: str) -> TableInfo | None:
        return self.tables.get(self.usage[key].parts) if key in self.usage else None

    def _refused(self, section: str, field: str, error: psycopg.Error, table: TableInfo | None) -> Misfit:
        answer = said(error)
        line = f"{self.settings.where(f'{section}.{field}')}: PostgreSQL refuses it: {answer}"
        if isinstance(error, pg.InsufficientPrivilege):
            grant = f"; GRANT SELECT ON {table.quoted} TO {self.role};" if table and table.name in answer else ""
            return Misfit(section=section, line=line + grant, privilege=True)
        return Misfit(section=section, line=line)
