"""Adopting the application's tables: the column meterctl stamps, and the index by which it finds what is unreported.

What is missing is planned first, so that it can be shown, printed for a DBA, and asked about; then it is done as
shown. Use a direct connection, not PgBouncer's transaction mode: an index is built outside of transactions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
from psycopg import errors as pg
from psycopg import sql

from meterctl.errors import ConfigurationError, LockedError, NotPermittedError, UnavailableError, UsageError
from meterctl.postgres.catalog import TableInfo, current_role, find_tables, quoted_name, table_names
from meterctl.postgres.connect import transaction, translated
from meterctl.postgres.indexes import (
    INDEXABLE,
    Columns,
    IndexPlan,
    Relation,
    indexes_of,
    relations_of,
)
from meterctl.postgres.misfits import Misfit, missing_table, table_misfits
from meterctl.postgres.queries import query
from meterctl.postgres.wanted import wanted_of_meter
from meterctl.settings import RowsMeter, Settings

ADOPT_LOCK = 0x61646F7074  # "adopt": any constant will do, it only has to be ours

LOCK_TIMEOUT = timedelta(seconds=5)
"""How long a change waits for the application's transactions: meanwhile everything else waits behind it."""

SCAN_TIMEOUT = timedelta(seconds=30)
"""How long the table may be locked while usage from the cut-over on is looked for."""

COUNT_TIMEOUT = timedelta(seconds=10)
"""How long an error message may take to say how many rows are unreported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Statements that are carried out together: as one transaction, or, one alone, outside of any."""

    comment: str
    statements: tuple[str, ...]
    in_transaction: bool

    def text(self) -> str:
        """Return the step as psql reads it."""
        lines = [f"-- {self.comment}"]
        if self.in_transaction:
            lines += ["BEGIN;", f"SET LOCAL lock_timeout = '{_seconds(LOCK_TIMEOUT)}';"]
            lines += [*self.statements, "COMMIT;"]
        else:
            lines += self.statements
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """What is to be done, in order, and what a person should know (`notes`)."""

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """A meter's table as it is."""

    key: str
    meter: RowsMeter
    table: TableInfo
    relations: Sequence[Relation]

    @property
    def has_column(self) -> bool:
        return self.meter.reported_at in self.table.columns

    @property
    def columns(self) -> Columns:
        return Columns.of(self.meter)

    @property
    def sql(self) -> str:
        return quoted_name((self.table.schema, self.table.name))


def plan_adoption(
    connection: psycopg.Connection,
    settings: Settings,
    meters: Mapping[str, RowsMeter],
    *,
    cut_over: datetime | None = None,
) -> Adoption:
    """Return what the meters' tables lack. `cut_over`: usage before this instant was reported by a predecessor.

    Raises ConfigurationError if a table does not fit the meter otherwise, UsageError if `cut_over` cannot be.
    """
    with transaction(connection, read_only=True):
        targets = _targets(connection, settings, meters)
        _require_columns_can_be(targets)
    if cut_over is not None:
        _require_cut_over_can_be(connection, targets, cut_over)
    with transaction(connection, read_only=True):
        steps = [step for target in targets for step in _steps(connection, target, cut_over)]
    notes = [note for target in targets for note in _notes(target)]
    return Adoption(steps=tuple(dict.fromkeys(steps)), notes=tuple(dict.fromkeys(notes)))


def _targets(
    connection: psycopg.Connection, settings: Settings, meters: Mapping[str, RowsMeter]
) -> list[_Target]:
    wanted = {key: wanted_of_meter(key, meter) for key, meter in meters.items()}
    tables = find_tables(connection, [one.parts for one in wanted.values()])
    role, names = current_role(connection), table_names(connection)
    found: list[Misfit] = []
    for key, one in wanted.items():
        table = tables.get(one.parts)
        if table is None:
            found.append(missing_table(one, names, role, settings.where))
        else:
            found += _hindering(table_misfits(one, table, role, settings.where), meters[key], table)
    if found:
        lines = tuple(dict.fromkeys(misfit.line for misfit in found))
        raise ConfigurationError("the tables do not fit the configuration", problems=lines)
    return [
        _Target(key=key, meter=meter, table=table, relations=relations_of(connection, table.oid))
        for key, meter in meters.items()
        for table in [tables[wanted[key].parts]]
    ]
