"""Whether the database fits the handling of Stripe's events. Reports do without, so they never ask."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import psycopg

from meterctl.core.diagnosis import Finding, failed, parted, passed, warned
from meterctl.errors import ExitCode
from meterctl.postgres.catalog import TableInfo, current_role, fetch, find_tables, table_names
from meterctl.postgres.check import raise_for
from meterctl.postgres.connect import transaction
from meterctl.postgres.misfits import Misfit, missing_table, table_misfits
from meterctl.postgres.queries import query
from meterctl.postgres.wanted import WantedTable
from meterctl.postgres.webhook_tables import EVENT_ID, EVENTS, SUBSCRIPTIONS, is_shipped, wanted_by_webhooks
from meterctl.settings import Settings

PLAIN_TABLE = "r"


def require_subscriptions_fit(connection: psycopg.Connection, settings: Settings) -> None:
    """Raise ConfigurationError if the table that events keep true does not fit; NotPermittedError for rights alone.

    Where no event is handled that keeps one true, all fits.
    """
    _require(connection, settings, SUBSCRIPTIONS, "or leave the events of subscriptions out of webhooks.handle")


def require_events_fit(connection: psycopg.Connection, settings: Settings) -> None:
    """Raise the same for the application's own table of events, where one is configured."""
    _require(connection, settings, EVENTS, "or leave webhooks.events out: meterctl has a table of its own")


def _require(connection: psycopg.Connection, settings: Settings, section: str, hint: str) -> None:
    wanted = [one for one in wanted_by_webhooks(settings) if one.section == section]
    raise_for([misfit for one in _compared(connection, settings, wanted) for misfit in one.misfits], hint=hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compared:
    """A table beside what is wanted of it."""

    wanted: WantedTable
    misfits: tuple[Misfit, ...]
    unfilled: tuple[str, ...]


def findings(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """Find out the same for `db check`. Where nobody configured it, what does not fit is no failure."""
    for one in _compared(connection, settings, wanted_by_webhooks(settings)):
        where = settings.where(one.wanted.key)
        for misfit in one.misfits:
            code = ExitCode.NOT_PERMITTED if misfit.privilege else ExitCode.CONFIGURATION
            is_optional = is_shipped(settings, one.wanted)
            yield warned(*parted(misfit.line)) if is_optional else failed(*parted(misfit.line), code)
        for column in one.unfilled:
            message = f'{where}: rows that meterctl adds to {one.wanted.name} would have nothing in "{column}"'
            yield warned(message, "give it a default, or leave rows of new subscriptions to your application")
        if not one.misfits:
            yield passed(f"{where}: {one.wanted.name} has the columns, types and privileges that events need")


def _compared(
    connection: psycopg.Connection, settings: Settings, wanted: Collection[WantedTable]
) -> tuple[_Compared, ...]:
    with transaction(connection, read_only=True):
        tables = find_tables(connection, [one.parts for one in wanted])
        role = current_role(connection)
        return tuple(_compare(connection, settings, one, tables.get(one.parts), role) for one in wanted)


def _compare(
    connection: psycopg.Connection, settings: Settings, wanted: WantedTable, table: TableInfo | None, role: str
) -> _Compared:
    if table is None:
        missing = missing_table(wanted, table_names(connection), role, settings.where)
        return _Compared(wanted=wanted, misfits=(missing,), unfilled=())
    where, unfilled = settings.where(wanted.key), tuple(_unfilled(wanted, table))
    found = [*table_misfits(wanted, table, role, settings.where), *_closed_sequences(connection, wanted, table, where)]
    if wanted.section == EVENTS:
        lines = [*_no_store(connection, wanted, table), *(_not_stored(wanted, column) for column in unfilled)]
        found += [Misfit(section=wanted.section, line=f"{where}: {line}") for line in lines]
        unfilled = ()
    return _Compared(wanted=wanted, misfits=tuple(found), unfilled=unfilled)


def _unfilled(wanted: WantedTable, table: TableInfo) -> Iterator[str]:
    """Yield the columns that must hold something, and would get nothing with a row of meterctl's."""
    inserted = {column.name for column in wanted.columns if column.inserted}
    for column in table.columns.values():
        if not column.nullable and not column.defaulted and column.name not in inserted:
            yield column.name


def _closed_sequences(
    connection: psycopg.Connection, wanted: WantedTable, table: TableInfo, where: str
) -> Iterator[Misfit]:
    role = current_role(connection)
    for row in fetch(connection, query("catalog", "closed_sequences"), {"table": table.oid}):
        line = f"role {role} may not count by {row['name']}; GRANT USAGE ON SEQUENCE {row['name']} TO {role};"
        yield Misfit(section=wanted.section, line=f"{where}: {line}", privilege=True)


def _no_store(connection: psycopg.Connection, wanted: WantedTable, table: TableInfo) -> Iterator[str]:
    """Yield what else keeps a table from holding each event once."""
    if table.kind != PLAIN_TABLE:
        yield f"{wanted.name} is not a plain table, in which alone each event is sure to be kept once; name one"
    elif EVENT_ID in table.columns and not has_unique_id(connection, table):
        yield f'"{EVENT_ID}" is not unique in {wanted.name}; make it so: meterctl db adopt {wanted.name}'


def _not_stored(wanted: WantedTable, column: str) -> str:
    return f'"{column}" of {wanted.name} must not be NULL, and no event has it; give it a default'


def has_unique_id(connection: psycopg.Connection, table: TableInfo) -> bool:
    """Whether an event can be kept only once in the table."""
    rows = fetch(connection, query("catalog", "unique_columns"), {"table": table.oid})
    return any(row["column"] == EVENT_ID for row in rows)
