"""What `db check` shows: everything a report asks of the database, and what would only make it slow."""

from collections.abc import Iterator

import psycopg

from meterctl.core.diagnosis import Finding, failed, parted, passed, warned
from meterctl.errors import ExitCode, NotPermittedError
from meterctl.postgres import webhook_fit
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


def inspect_database(connection: psycopg.Connection, settings: Settings) -> list[Finding]:
    """Return all findings, good ones too. Raises UnavailableError only if PostgreSQL goes away."""
    return [
        server_version(connection),
        *standby(connection),
        *unreadable_marks(connection),
        *ledger_schema(connection),
        *fit(connection, settings),
        *indexes(connection, settings),
        *counting(connection, settings),
        *webhook_fit.findings(connection, settings),
        *no_meter(settings),
    ]


def server_version(connection: psycopg.Connection) -> Finding:
    """Find out whether the server is new enough."""
    number = connection.info.server_version
    major, minor = divmod(number, _VERSION_STEP)
    if major < VERSION_MIN:
        return failed(f"PostgreSQL {major}.{minor} is too old", f"meterctl needs {VERSION_MIN} or later")
    return passed(f"PostgreSQL {major}.{minor}")


def standby(connection: psycopg.Connection) -> Iterator[Finding]:
    """Find out whether the server takes no writes."""
    with transaction(connection, read_only=True):
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    if row and row[0]:
        yield warned("this server is a standby", "reports need the primary, which takes writes")


def unreadable_marks(connection: psycopg.Connection) -> Iterator[Finding]:
    """Find out whether a restore or a copy would be noticed."""
    unreadable = read_marks(connection).unreadable
    if unreadable:
        message = f"{' and '.join(unreadable)} cannot be read here: a restored database or a copy may not be noticed"
        yield warned(message, None)


def ledger_schema(connection: psycopg.Connection) -> Iterator[Finding]:
    """Find out whether the ledger's schema is there, at a version that fits."""
    problem = schema_problem(connection)
    if problem is None:
        yield passed(f"{LEDGER} is there, at a version that fits")
    elif not isinstance(problem, NotPermittedError):  # privileges are told with all others
        yield failed(f"{LEDGER}: {problem}", problem.hint)


def fit(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """Find out whether tables, columns, types and privileges are what the configuration needs."""
    found = misfits(connection, settings)
    for misfit in found:
        code = ExitCode.NOT_PERMITTED if misfit.privilege else ExitCode.CONFIGURATION
        yield failed(*parted(misfit.line), code)
    faulty = {misfit.section for misfit in found}
    meters = settings.enabled_meters
    wanted = [wanted_of_meter(key, one) for key, one in meters.items() if not isinstance(one, CounterMeter)]
    names = dict.fromkeys(payer.lookup for meter in meters.values() for payer in meter.payers)
    wanted += [wanted_of_lookup(name, settings.lookups[name]) for name in names]
    for one in wanted:
        if one.section not in faulty:
            yield passed(f"{settings.where(one.section)}: {one.name} has the columns, types and privileges")


def indexes(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """Find out whether unreported rows are found by an index."""
    meters = rows_meters(settings)
    with transaction(connection, read_only=True):
        tables = find_tables(connection, [meter.table_parts for meter in meters.values()])
        for key, meter in meters.items():
            table = tables.get(meter.table_parts)
            if table is not None:
                yield from _table(connection, settings.where(dotted(("meters", key))), meter, table)


def _table(connection: psycopg.Connection, where: str, meter: RowsMeter, table: TableInfo) -> Iterator[Finding]:
    if table.filtered:
        message = f"{where}: row-level security of {meter.table} hides rows from this role"
        yield warned(message, "they would never be billed")
    if table.kind not in INDEXABLE:
        message = f"{where}: {meter.table} is not a table, so its index cannot be checked"
        yield warned(message, "the table below needs one")
        return
    columns = Columns.of(meter)
    relations = relations_of(connection, table.oid)
    found = indexes_of(connection, relations, columns)
    serving = [index for index in found if index.table_oid == table.oid and index.valid]
    if serving:
        yield passed(f"{where}: index {serving[0].name} finds unreported rows")
    elif {meter.id, meter.occurred_at, meter.reported_at} <= table.columns.keys():
        message = f"{where}: {meter.table} has no valid index {columns.definition}"
        yield failed(message, f"meterctl db adopt {meter.table}")
    for left in leftovers_of(connection, relations):
        message = f"{where}: index {left['name']} is invalid, left by an interrupted CREATE INDEX CONCURRENTLY"
        yield warned(message, drop_statement(left["schema"], left["name"]))


def counting(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """Find out whether what is inserted into counters' tables is counted."""
    for key, meter in settings.enabled_meters.items():
        if not isinstance(meter, CounterMeter) or meter.table is None:
            continue
        where = settings.where(dotted(("meters", key)))
        with transaction(connection, read_only=True):
            lacking = uncounted(connection, key, meter)
        for line in lacking:
            yield failed(f"{where}: {line}", f"meterctl db adopt {meter.table}")
        if not lacking:
            yield passed(f"{where}: what is inserted into {meter.table} is counted")


def no_meter(settings: Settings) -> Iterator[Finding]:
    """Find out whether any meter is enabled at all."""
    if not settings.enabled_meters:
        yield warned(f"{settings.where('meters')}: no meter is enabled", "enable one under [meters.…]")
