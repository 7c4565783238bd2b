"""What does not fit between the configuration and a table, in words: pure, given what the catalogs say."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from meterctl.postgres.catalog import ColumnInfo, TableInfo, TableName
from meterctl.postgres.fragments import LOCAL_TIME
from meterctl.postgres.wanted import Kind, WantedColumn, WantedTable, near, suggestion

LEDGER = "schema meterctl"
"""The section of misfits that no key of the configuration causes."""

Where = Callable[[str], str]
"""Given a dotted key, where a person finds it: `Settings.where`."""

_NOT_TABLES = {"m": "a materialized view, which nothing can be recorded in", "f": "a foreign table"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """One reason not to run: `line` begins with the place and ends with the remedy.

    `section` is the configuration's table (`meters.x`, `lookups.y`) or LEDGER. `privilege`: a GRANT is all it takes.
    """

    section: str
    line: str
    privilege: bool = False


def missing_table(wanted: WantedTable, names: Sequence[TableName], role: str, where: Where) -> Misfit:
    """Given the names of all tables, say what could be meant by one that was not found."""
    section, place = wanted.section, where(wanted.key)
    bare = wanted.parts[-1]
    elsewhere = [name for name in names if name.name.rpartition(".")[2] == bare and not name.visible]
    closed = [name for name in elsewhere if not name.schema_usable]
    if len(wanted.parts) == 1 and len(closed) == len(elsewhere) == 1:
        schema = closed[0].schema_quoted
        line = f"role {role} may not use schema {schema}, where {closed[0].name} is; {_usage_grant(schema, role)}"
        return Misfit(section=section, line=f"{place}: {line}", privilege=True)
    line = f'there is no table "{wanted.name}"'
    if len(wanted.parts) == 1 and elsewhere:
        return Misfit(section=section, line=f'{place}: {line} on the search path; did you mean "{elsewhere[0].name}"?')
    return Misfit(section=section, line=f"{place}: {line}{suggestion(wanted.name, [name.name for name in names])}")


def table_misfits(wanted: WantedTable, table: TableInfo, role: str, where: Where) -> Iterator[Misfit]:
    """Yield what is wrong with a table that exists: its columns, their types, what the role may do."""
    for column in wanted.columns:
        line = _column_fault(wanted, column, table)
        if line is not None:
            yield Misfit(section=wanted.section, line=f"{where(column.key)}: {line}")
    for key, line in _lacking(wanted, table, role):
        yield Misfit(section=wanted.section, line=f"{where(key)}: {line}", privilege=True)


def _column_fault(wanted: WantedTable, column: WantedColumn, table: TableInfo) -> str | None:
    found = table.columns.get(column.name)
    if found is None:
        return f'there is no column "{column.name}" in {wanted.name}{_missing_remedy(wanted, column, table)}'
    if not column.kind.accepts(found.base_type):
        return _wrong_type(wanted, column, found)
    if column.updated and not found.updatable:
        kind = _NOT_TABLES.get(table.kind, "a view that does not let it be updated")
        return f'"{column.name}" cannot be updated: {wanted.name} is {kind}; name the table itself'
    return None


def _missing_remedy(wanted: WantedTable, column: WantedColumn, table: TableInfo) -> str:
    known = list(table.columns)
    if column.added_as is None:
        return suggestion(column.name, known)
    meant = near(column.name, known)
    if meant:
        return f'; did you mean "{meant}"? Otherwise add it: meterctl db adopt {wanted.name}'
    if table.kind in {"r", "p"}:
        return f"; add it: meterctl db adopt {wanted.name}"
    return f"; add it to the table below ({column.added_as}) and to the view"


def _wrong_type(wanted: WantedTable, column: WantedColumn, found: ColumnInfo) -> str:
    is_type = f'"{column.name}" of {wanted.name} is {found.type}'
    if column.kind is Kind.ZONED:
        return f"{is_type}; make it {Kind.INSTANT.value}"
    if column.kind not in {Kind.INSTANT, Kind.LOCAL_TIME}:
        return f"{is_type}, must be {column.kind.value}; name another column, or a view with a cast"
    if found.base_type == LOCAL_TIME:
        remedy = f'name its zone (time_zone = "UTC", "Europe/Berlin", ...), or make it {Kind.INSTANT.value}'
        return f"{is_type}, which names no instant; {remedy}"
    why = ", which names no instant" if found.base_type == "date" else ""
    return f"{is_type}{why}; make it {Kind.INSTANT.value}, or name a view that converts it"


def _lacking(wanted: WantedTable, table: TableInfo, role: str) -> Iterator[tuple[str, str]]:
    """Yield (key, what the role may not do with the GRANT that lets it)."""
    if not table.schema_usable:
        grant = _usage_grant(table.schema_quoted, role)
        yield wanted.key, f"role {role} may not use schema {table.schema_quoted}; {grant}"
    there = {column: table.columns[column.name] for column in wanted.columns if column.name in table.columns}
    lacking = {
        "read": [column for column, found in there.items() if not found.readable],
        "update": [c for c, found in there.items() if c.updated and found.updatable and not found.writable],
        "insert": [column for column, found in there.items() if column.inserted and not found.insertable],
    }
    for verb, columns in lacking.items():
        if columns:
            names = ", ".join(dict.fromkeys(there[column].quoted for column in columns))
            grant = f"GRANT {_RIGHTS[verb]} ({names}) ON {table.quoted} TO {role};"
            key = columns[0].key if verb == "update" and len(columns) == 1 else wanted.key
            yield key, f"role {role} may not {verb} {names} of {wanted.name}; {grant}"


_RIGHTS = {"read": "SELECT", "update": "UPDATE", "insert": "INSERT"}


def _usage_grant(schema: str, role: str) -> str:
    return f"GRANT USAGE ON SCHEMA {schema} TO {role};"
