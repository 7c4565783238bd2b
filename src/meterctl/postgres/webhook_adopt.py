"""Adopting the tables that Stripe's events are about: the columns that meterctl writes, and each event in one row."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import psycopg

from meterctl.errors import ConfigurationError
from meterctl.postgres.adopt import Adoption, Step, obstacles
from meterctl.postgres.catalog import TableInfo, current_role, find_tables, quoted_name, table_names
from meterctl.postgres.connect import transaction
from meterctl.postgres.indexes import INDEXABLE, NAME_BYTES_MAX, drop_statement, leftovers_of, relations_of
from meterctl.postgres.misfits import missing_table, table_misfits
from meterctl.postgres.wanted import WantedColumn, WantedTable, is_named, near
from meterctl.postgres.webhook_fit import PLAIN_TABLE, has_unique_id
from meterctl.postgres.webhook_tables import DEFAULTS_AFTERWARDS, EVENT_ID, EVENTS, is_shipped, wanted_by_webhooks
from meterctl.settings import Settings


def adoptable_tables(settings: Settings, table: str | None = None) -> tuple[WantedTable, ...]:
    """Return what events want of tables, or of the one that is named."""
    wanted = wanted_by_webhooks(settings)
    return tuple(one for one in wanted if table is None or is_named(table, one.parts))


def plan_webhooks(connection: psycopg.Connection, settings: Settings, wanted: Sequence[WantedTable]) -> Adoption:
    """Return what the tables lack. Raises ConfigurationError if one does not fit in other ways.

    What only the shipped configuration wants, and is not so, is left alone: perhaps nobody means to handle events.
    """
    with transaction(connection, read_only=True):
        tables = find_tables(connection, [one.parts for one in wanted])
        role = current_role(connection)
        lines, found = [], []
        for one in wanted:
            problems = list(_beyond_adoption(connection, settings, one, tables.get(one.parts), role))
            if not problems:
                found.append((one, tables[one.parts]))
            elif not is_shipped(settings, one):
                lines += problems
        if lines:
            raise ConfigurationError("the tables do not fit the configuration", problems=tuple(lines))
        return sum((_plan(connection, one, table, role) for one, table in found), Adoption())


def _beyond_adoption(
    connection: psycopg.Connection, settings: Settings, wanted: WantedTable, table: TableInfo | None, role: str
) -> Iterator[str]:
    """Yield what adopting the table cannot mend."""
    if table is None:
        yield missing_table(wanted, table_names(connection), role, settings.where).line
        return
    if wanted.section == EVENTS and table.kind != PLAIN_TABLE:
        yield f"{settings.where(wanted.key)}: {wanted.name} is not a plain table; name one"
    if table.kind in INDEXABLE:
        there = tuple(column for column in wanted.columns if column not in _missing(wanted, table))
        wanted = replace(wanted, columns=there)
    yield from (m.line for m in table_misfits(wanted, table, role, settings.where) if not m.privilege)


def _missing(wanted: WantedTable, table: TableInfo) -> list[WantedColumn]:
    return [column for column in wanted.columns if column.added_as and column.name not in table.columns]


def _plan(connection: psycopg.Connection, wanted: WantedTable, table: TableInfo, role: str) -> Adoption:
    missing = _missing(wanted, table)
    steps = [_add(wanted, missing, table)] if missing else []
    if wanted.section == EVENTS and not has_unique_id(connection, table):
        steps += _make_unique(connection, wanted, table)
    relations = relations_of(connection, table.oid)
    return Adoption(
        steps=tuple(steps),
        notes=tuple(_notes(wanted, missing, table)),
        obstacles=tuple(obstacles(relations, role)) if steps else (),
    )


def _add(wanted: WantedTable, missing: Sequence[WantedColumn], table: TableInfo) -> Step:
    name = quoted_name((table.schema, table.name))
    # Constant defaults are kept in the catalog: no row is rewritten.
    added = [f"ALTER TABLE {name} ADD COLUMN {quoted_name((one.name,))} {one.added_as};" for one in missing]
    changed = [
        f"ALTER TABLE {name} ALTER COLUMN {quoted_name((one.name,))} SET DEFAULT {DEFAULTS_AFTERWARDS[one.name]};"
        for one in missing
        if wanted.section == EVENTS and one.name in DEFAULTS_AFTERWARDS
    ]
    comment = f"{wanted.name}: columns that meterctl writes"
    return Step(comment=comment, statements=(*added, *changed), in_transaction=True)


def _make_unique(connection: psycopg.Connection, wanted: WantedTable, table: TableInfo) -> Iterator[Step]:
    """Yield the statements for an index, after what an interrupted attempt at it has left."""
    suffix = f"_{EVENT_ID}"
    index = table.name.encode()[: NAME_BYTES_MAX - len(suffix)].decode(errors="ignore") + suffix
    left = leftovers_of(connection, relations_of(connection, table.oid))
    name = quoted_name((table.schema, table.name))
    for statement in (
        *(drop_statement(one["schema"], index) for one in left if one["name"] == index),
        f"CREATE UNIQUE INDEX CONCURRENTLY {quoted_name((index,))} ON {name} ({quoted_name((EVENT_ID,))});",
    ):
        comment = f"{wanted.name}: outside of transactions; takes its time, and lets everybody go on meanwhile"
        yield Step(comment=comment, statements=(statement,), in_transaction=False)


def _notes(wanted: WantedTable, missing: Sequence[WantedColumn], table: TableInfo) -> Iterator[str]:
    if wanted.section == EVENTS and any(column.name == "status" for column in missing):
        yield f"{wanted.name}: events that are in it already count as acted on; `meterctl webhooks replay` acts on them"
    for column in missing:
        meant = near(column.name, list(table.columns))
        if meant is not None:
            yield f'{wanted.name} has a column "{meant}"; make sure that "{column.name}" is not meant to be that one'
