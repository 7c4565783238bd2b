"""What `db check` shows: everything a report asks of the database, and what would only make it slow."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import psycopg

from meterctl.errors import NotPermittedError
from meterctl.postgres.catalog import TableInfo, find_tables
from meterctl.postgres.check import misfits
from meterctl.postgres.connect import transaction
from meterctl.postgres.counting import uncounted
from meterctl.postgres.identity import read_marks
from meterctl.postgres.indexes import (
    INDEXABLE,
    Columns,
    drop_statement,
    indexes_of,
    leftovers_of,
    relations_of,
)
from meterctl.postgres.migrate import schema_problem
from meterctl.postgres.misfits import LEDGER
from meterctl.postgres.wanted import rows_meters, wanted_of_lookup, wanted_of_meter
from meterctl.settings import CounterMeter, RowsMeter, Settings
from meterctl.settings.problems import dotted

VERSION_MIN = 14
"""The oldest PostgreSQL that meterctl is tested with."""

_VERSION_STEP = 10_000  # PQserverVersion counts 180006 for 18.6


class Status(StrEnum):
    """How a check came out. WARN: works, but somebody should know."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of `db check`. `privilege`: only a GRANT is missing."""

    status: Status
    message: str
    privilege: bool = False


def inspect_database(connection: psycopg.Connection, settings: Settings) -> list[Finding]:
    """Return all findings, good ones too. Raises UnavailableError only if PostgreSQL goes away."""
    return [
        _version(connection),
        *_standby(connection),
        *_marks(connection),
        *_schema(connection),
        *_fit(connection, settings),
        *_tables(connection, settings),
        *_counting(connection, settings),
        *_no_meter(settings),
    ]


def _version(connection: psycopg.Connection) -> Finding:
    number = connection.info.server_version
    major, minor = divmod(number, _VERSION_STEP)
    if major < VERSION_MIN:
        message = f"PostgreSQL {major}.{minor} is too old; meterctl needs {VERSION_MIN} or later"
        return Finding(status=Status.FAIL, message=message)
    return Finding(status=Status.OK, message=f"PostgreSQL {major}.{minor}")


def _standby(connection: psycopg.Connection) -> Iterator[Finding]:
    with transaction(connection, read_only=True):
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    if row and row[0]:
        yield Finding(
            status=Status.WARN, message="this server is a standby: reports need the primary, which takes writes"
        )


def _marks(connection: psycopg.Connection) -> Iterator[Finding]:
    unreadable = read_marks(connection).unreadable
    if unreadable:
        message = f"{' and '.join(unreadable)} cannot be read here: a restored database or a copy may not be noticed"
        yield Finding(status=Status.WARN, message=message)


def _schema(connection: psycopg.Connection) -> Iterator[Finding]:
    problem = schema_problem(connection)
    if problem is None:
        yield Finding(status=Status.OK, message=f"{LEDGER} is there, at a version that fits")
    elif not isinstance(problem, NotPermittedError):  # privileges are told with all others
        yield Finding(status=Status.FAIL, message=f"{LEDGER}: {problem}; {problem.hint}")


def _fit(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    found = misfits(connection, settings)
    yield from (Finding(status=Status.FAIL, message=m.line, privilege=m.privilege) for m in found)
    faulty = {misfit.section for misfit in found}
    meters = settings.enabled_meters
    wanted = [wanted_of_meter(key, one) for key, one in meters.items() if not isinstance(one, CounterMeter)]
    names = dict.fromkeys(payer.lookup for meter in meters.values() for payer in meter.payers)
    wanted += [wanted_of_lookup(name, settings.lookups[name]) for name in names]
    for one in wanted:
        if one.section not in faulty:
            message = f"{settings.where(one.section)}: {one.name} has the columns, types and privileges"
            yield Finding(status=Status.OK, message=message)


def _tables(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    meters = rows_meters(settings)
    with transaction(connection, read_only=True):
        tables = find_tables(connection, [meter.table_parts for meter in meters.values()])
        for key, meter in meters.items():
            table = tables.get(meter.table_parts)
            if table is not None:
                yield from _table(connection, settings.where(dotted(("meters", key))), meter, table)


def _table(connection: psycopg.Connection, where: str, meter: RowsMeter, table: TableInfo) -> Iterator[Finding]:
    if table.filtered:
        message = f"{where}: row-level security of {meter.table} hides rows from this role; they would never be billed"
        yield Finding(status=Status.WARN, message=message)
    if table.kind not in INDEXABLE:
        message = f"{where}: {meter.table} is not a table, so its index cannot be checked; the table below needs one"
        yield Finding(status=Status.WARN, message=message)
        return
    columns = Columns.of(meter)
    relations = relations_of(connection, table.oid)
    indexes = indexes_of(connection, relations, columns)
    serving = [index for index in indexes if index.table_oid == table.oid and index.valid]
    if serving:
        yield Finding(status=Status.OK, message=f"{where}: index {serving[0].name} finds unreported rows")
    elif {meter.id, meter.occurred_at, meter.reported_at} <= table.columns.keys():
        message = f"{where}: {meter.table} has no valid index {columns.definition}; meterctl db adopt {meter.table}"
        yield Finding(status=Status.FAIL, message=message)
    for left in leftovers_of(connection, relations):
        drop = drop_statement(left["schema"], left["name"])
        message = f"{where}: index {left['name']} is invalid, left by an interrupted CREATE INDEX CONCURRENTLY; {drop}"
        yield Finding(status=Status.WARN, message=message)


def _counting(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    for key, meter in settings.enabled_meters.items():
        if not isinstance(meter, CounterMeter) or meter.table is None:
            continue
        where = settings.where(dotted(("meters", key)))
        with transaction(connection, read_only=True):
            lacking = uncounted(connection, key, meter)
        for line in lacking:
            yield Finding(status=Status.FAIL, message=f"{where}: {line}; meterctl db adopt {meter.table}")
        if not lacking:
            yield Finding(status=Status.OK, message=f"{where}: what is inserted into {meter.table} is counted")


def _no_meter(settings: Settings) -> Iterator[Finding]:
    if not settings.enabled_meters:
        yield Finding(status=Status.WARN, message=f"{settings.where('meters')}: no meter is enabled")
