"""What PostgreSQL's catalogs say about the operator's tables, and about what this role may do with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from meterctl.postgres.queries import query

Parts = tuple[str, ...]
"""(table,), to be found by the role's search_path, or (schema, table)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnInfo:
    """One column: `type` as PostgreSQL writes it (`bigint`, `timestamp with time zone`).

    `base_type` is the same unless `type` is a domain. `readable`, `writable` and `insertable` are this role's SELECT,
    UPDATE and INSERT, `updatable` is whether anybody could (a view may say no). `quoted` is the name as SQL writes it.
    `defaulted`: a row that does not name it gets a value all the same.
    """

    name: str
    quoted: str
    type: str
    base_type: str
    nullable: bool
    readable: bool
    writable: bool
    insertable: bool
    updatable: bool
    defaulted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TableInfo:
    """A table, view or partitioned table: `kind` is pg_class.relkind, `quoted` its name in full as SQL writes it.

    `filtered`: row-level security hides rows from this role.
    """

    oid: int
    schema: str
    schema_quoted: str
    name: str
    quoted: str
    kind: str
    schema_usable: bool
    filtered: bool
    columns: Mapping[str, ColumnInfo]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableName:
    """A name for suggestions: `name` as the configuration would write it."""

    name: str
    schema_quoted: str
    schema_usable: bool
    visible: bool


def quoted_name(parts: Sequence[str]) -> str:
    """Given (table,) or (schema, table), return it quoted as PostgreSQL reads it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def table_info(connection: psycopg.Connection, parts: Sequence[str]) -> TableInfo | None:
    """Return what is known of the table, or None if this role finds no such table."""
    return find_tables(connection, [tuple(parts)]).get(tuple(parts))


def find_tables(connection: psycopg.Connection, names: Iterable[Parts]) -> dict[Parts, TableInfo]:
    """Return those of the named tables that exist, in one query."""
    wanted = list(dict.fromkeys(names))
    schemas = [parts[0] if len(parts) > 1 else None for parts in wanted]
    rows = fetch(connection, query("catalog", "tables"), {"schemas": schemas, "names": [p[-1] for p in wanted]})
    by_table: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_table.setdefault(row["n"], []).append(row)
    return {wanted[n - 1]: _table(found) for n, found in by_table.items()}


def table_names(connection: psycopg.Connection) -> list[TableName]:
    """Return every table and view of the database, PostgreSQL's own, ours and partitions aside."""
    return [TableName(**row) for row in fetch(connection, query("catalog", "table_names"))]


def current_role(connection: psycopg.Connection) -> str:
    """Return this role's name, quoted for GRANT."""
    row = connection.execute(query("catalog", "role")).fetchone()
    assert row is not None  # noqa: S101 -- a SELECT without FROM always gives a row
    return str(row[0])


def fetch(
    connection: psycopg.Connection, text: LiteralString, parameters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return a query's rows by column name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(text, parameters).fetchall()


def _table(rows: Sequence[Mapping[str, Any]]) -> TableInfo:
    columns = [_column(row) for row in rows if row["column"] is not None]
    names = ("oid", "schema", "schema_quoted", "name", "quoted", "kind", "schema_usable", "filtered")
    return TableInfo(**{name: rows[0][name] for name in names}, columns={column.name: column for column in columns})


def _column(row: Mapping[str, Any]) -> ColumnInfo:
    names = ("type", "base_type", "nullable", "readable", "writable", "insertable", "updatable", "defaulted")
    return ColumnInfo(name=row["column"], quoted=row["column_quoted"], **{name: row[name] for name in names})
