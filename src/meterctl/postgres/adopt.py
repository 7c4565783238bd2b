"""Adopting the application's tables: the column meterctl stamps, and the index by which it finds what is unreported.

What is missing is planned here, so that it can be shown, printed for a DBA and asked about; `adopting` then does it as
shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import errors as pg
from psycopg import sql

from meterctl.errors import ConfigurationError, MeterctlError, UnavailableError, UsageError
from meterctl.postgres.catalog import TableInfo, current_role, find_tables, quoted_name, table_names
from meterctl.postgres.connect import transaction
from meterctl.postgres.fragments import at_zone
from meterctl.postgres.indexes import INDEXABLE, Columns, IndexPlan, Relation, indexes_of, relations_of
from meterctl.postgres.misfits import missing_table, table_misfits
from meterctl.postgres.queries import query
from meterctl.postgres.refusals import refused_condition, said, unknown_zone
from meterctl.postgres.wanted import WantedTable, near, wanted_of_meter
from meterctl.settings import RowsMeter, Settings

LOCK_TIMEOUT = timedelta(seconds=5)
"""How long a change waits for the application's transactions: meanwhile everything else waits behind it."""

SCAN_TIMEOUT = timedelta(seconds=30)
"""How long the table may be locked while usage from the cut-over on is looked for."""

COUNT_TIMEOUT = timedelta(seconds=10)
"""How long an error message may take to say how many rows are unreported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Statements that are carried out together: as one transaction, or, outside of any, one after the other."""

    comment: str
    statements: tuple[str, ...]
    in_transaction: bool

    def text(self) -> str:
        """Return the step as psql reads it."""
        statements = self.statements
        if self.in_transaction:
            statements = ("BEGIN;", *_TIMEOUTS, *statements, "COMMIT;")
        return "\n".join((f"-- {self.comment}", *statements)) + "\n"


_TIMEOUTS = (
    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT.total_seconds():.0f}s';",
    f"SET LOCAL statement_timeout = '{SCAN_TIMEOUT.total_seconds():.0f}s';",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """What is to be done, in order; what a person should know (`notes`); which rights are missing for it."""

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()

    def __add__(self, other: "Adoption") -> "Adoption":
        """Return both, one after the other."""
        return Adoption(
            steps=self.steps + other.steps,
            notes=self.notes + other.notes,
            obstacles=tuple(dict.fromkeys(self.obstacles + other.obstacles)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """A meter's table as it is."""

    meter: RowsMeter
    table: TableInfo
    relations: Sequence[Relation]

    @property
    def has_column(self) -> bool:
        return self.meter.reported_at in self.table.columns

    @property
    def sql(self) -> str:
        return quoted_name((self.table.schema, self.table.name))

    def usage_from(self, instant: str) -> str:
        """Return the condition on usage from an instant on, given as SQL; an index on the column serves it."""
        column, zone = quoted_name((self.meter.occurred_at,)), self.zone(self.meter.occurred_at)
        near = f"{column} >= {instant}{zone} - interval '1 day' AND " if zone else ""
        return f"{near}{column}{zone} >= {instant}"

    def zone(self, column: str) -> str:
        """Return what makes an instant of the column's value, and the other way round."""
        return at_zone(self.table, column, self.meter.time_zone)


def plan_adoption(
    connection: psycopg.Connection,
    settings: Settings,
    meters: Mapping[str, RowsMeter],
    *,
    cut_over: datetime | None = None,
) -> Adoption:
    """Return what the meters' tables lack. `cut_over`: usage before this instant was reported by a predecessor.

    Raises ConfigurationError if a table does not fit its meter in other ways, UsageError if `cut_over` cannot be.
    """
    with transaction(connection, read_only=True):
        targets = _targets(connection, settings, meters)
    if cut_over is not None:
        _require_past(connection, cut_over)
        for target in targets:
            _require_no_column(connection, target, cut_over)
    with transaction(connection, read_only=True):
        planned = [(target, _steps(connection, target, cut_over)) for target in targets]
        role = current_role(connection)
    return Adoption(
        steps=tuple(dict.fromkeys(step for _, steps in planned for step in steps)),
        notes=tuple(dict.fromkeys(note for target in targets for note in _notes(target))),
        obstacles=tuple(dict.fromkeys(line for t, steps in planned if steps for line in obstacles(t.relations, role))),
    )


def _targets(connection: psycopg.Connection, settings: Settings, meters: Mapping[str, RowsMeter]) -> list[_Target]:
    wanted = {key: wanted_of_meter(key, meter) for key, meter in meters.items()}
    tables = find_tables(connection, [one.parts for one in wanted.values()])
    found = [
        line
        for key, one in wanted.items()
        for line in _misfits(connection, settings, meters[key], one, tables.get(one.parts))
    ]
    if found:
        raise ConfigurationError("the tables do not fit the configuration", problems=tuple(dict.fromkeys(found)))
    pairs = [(meter, tables[meter.table_parts]) for meter in meters.values()]
    return [_Target(meter=m, table=t, relations=relations_of(connection, t.oid)) for m, t in pairs]


def _misfits(
    connection: psycopg.Connection,
    settings: Settings,
    meter: RowsMeter,
    wanted: WantedTable,
    table: TableInfo | None,
) -> list[str]:
    """Return what adopting the table cannot mend."""
    role = current_role(connection)
    if table is None:
        return [missing_table(wanted, table_names(connection), role, settings.where).line]
    if table.kind in INDEXABLE:
        there = (column for column in wanted.columns if not column.added_as or column.name in table.columns)
        wanted = replace(wanted, columns=tuple(there))
    found = [m.line for m in table_misfits(wanted, table, role, settings.where) if not m.privilege]
    return found + [f"{settings.where(f'{wanted.section}.{key}')}: {what}" for key, what in _refused(connection, meter)]


def _refused(connection: psycopg.Connection, meter: RowsMeter) -> Iterator[tuple[str, str]]:
    """Yield (key, what PostgreSQL says against it)."""
    unknown = unknown_zone(connection, meter.time_zone) if meter.time_zone is not None else None
    if unknown is not None:
        yield "time_zone", unknown
    error = refused_condition(connection, meter.table_parts, meter.where) if meter.where is not None else None
    if error is not None and not _of_new_column(error, meter):
        yield "where", f"PostgreSQL refuses it: {said(error)}"


def _of_new_column(error: psycopg.Error, meter: RowsMeter) -> bool:
    """Whether a condition is refused only since the column that adopting adds is not there yet."""
    return isinstance(error, pg.UndefinedColumn) and meter.reported_at in said(error)


def _steps(connection: psycopg.Connection, target: _Target, cut_over: datetime | None) -> list[Step]:
    name = target.meter.table
    steps = []
    if not target.has_column:
        statements = tuple(_add_column(target, cut_over))
        steps.append(Step(comment=f"{name}: the column meterctl stamps", statements=statements, in_transaction=True))
    columns = Columns.of(target.meter)
    indexes = indexes_of(connection, target.relations, columns)
    if any(index.being_built for index in indexes):
        raise UnavailableError(
            f"an index of {name} is being built by another session",
            hint="run `meterctl db adopt` again when it is done",
        )
    plan = IndexPlan(relations=target.relations, indexes=indexes, columns=columns)
    return steps + [_index_step(name, statement) for statement in plan.statements()]


def _index_step(name: str, statement: str) -> Step:
    if statement.startswith(("CREATE INDEX CONCURRENTLY", "DROP INDEX CONCURRENTLY")):
        comment = f"{name}: outside of transactions; takes its time, and lets everybody go on meanwhile"
        return Step(comment=comment, statements=(statement,), in_transaction=False)
    return Step(comment=f"{name}: the index of the parent", statements=(statement,), in_transaction=True)


def _add_column(target: _Target, cut_over: datetime | None) -> Iterator[str]:
    column = quoted_name((target.meter.reported_at,))
    if cut_over is None:
        yield f"ALTER TABLE {target.sql} ADD COLUMN IF NOT EXISTS {column} timestamptz;"
        return
    # A constant default of a new column is kept once, in the catalog: no row is rewritten (PostgreSQL 11 and later).
    instant = _literal(cut_over)
    yield f"ALTER TABLE {target.sql} ADD COLUMN {column} timestamptz DEFAULT {instant};"
    yield f"ALTER TABLE {target.sql} ALTER COLUMN {column} DROP DEFAULT;"
    # Usage from the cut-over on is not the predecessor's, even if it was recorded before this statement runs.
    yield f"UPDATE {target.sql} SET {column} = NULL WHERE {target.usage_from(instant)};"  # noqa: S608 -- names are quoted


def _literal(instant: datetime) -> str:
    return f"timestamptz '{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00'"


def _require_past(connection: psycopg.Connection, cut_over: datetime) -> None:
    with transaction(connection, read_only=True):
        row = connection.execute("SELECT clock_timestamp() < %s", [cut_over]).fetchone()
    if row and row[0]:
        raise UsageError(
            "--cut-over lies in the future", hint="stop the predecessor first, then name the instant it reported up to"
        )


def _require_no_column(connection: psycopg.Connection, target: _Target, cut_over: datetime) -> None:
    if not target.has_column:
        return
    meter, instant = target.meter, _literal(cut_over)
    column, occurred_at = quoted_name((meter.reported_at,)), quoted_name((meter.occurred_at,))
    by_hand = (
        f"UPDATE {target.sql} SET {column} = {instant}{target.zone(meter.reported_at)} "  # noqa: S608 -- quoted
        f"WHERE {column} IS NULL AND {occurred_at}{target.zone(meter.occurred_at)} < {instant};"
    )
    raise UsageError(
        f"--cut-over is for a table that has no column {meter.reported_at} yet; {meter.table} has it, and "
        f"{_unreported(connection, target)} of its rows are unreported",
        hint="leave out --cut-over to do the rest. meterctl never marks rows that it has not reported; "
        f"if a predecessor reported them, do so yourself: {by_hand}",
    )


def _unreported(connection: psycopg.Connection, target: _Target) -> str:
    name = sql.Identifier(target.table.schema, target.table.name)
    text = sql.SQL(query("adopt", "count_unreported")).format(
        table=name, reported_at=sql.Identifier(target.meter.reported_at)
    )
    try:
        with transaction(connection, read_only=True, statement_timeout=COUNT_TIMEOUT):
            row = connection.execute(text).fetchone()
    except MeterctlError:  # too many to count in time, or not ours to count
        return "an unknown number"
    return str(row[0]) if row else "none"


def _notes(target: _Target) -> Iterator[str]:
    name, column = target.meter.table, target.meter.reported_at
    if target.table.kind not in INDEXABLE:
        yield (
            f"{name} is not a table; give the table below it an index "
            f"{Columns.of(target.meter).definition}, under that table's own names of the columns"
        )
    meant = None if target.has_column else near(column, list(target.table.columns))
    if meant is not None:
        yield f'{name} has a column "{meant}"; make sure that "{column}" is not meant to be that one'


def obstacles(relations: Sequence[Relation], role: str) -> Iterator[str]:
    """Yield the rights that a role lacks to give tables columns and indexes."""
    for relation in relations:
        if not relation.owned:
            yield f"{relation.sql} belongs to {relation.owner}; run as {relation.owner}"
        elif not relation.may_create:
            yield f"no index may be created in its schema; GRANT CREATE ON SCHEMA {relation.schema_quoted} TO {role};"
