"""What PostgreSQL's catalogs say about the operator's tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from meterctl.postgres.queries import query


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnInfo:
    """One column: `type` as PostgreSQL writes it (`bigint`, `timestamp with time zone`)."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TableInfo:
    """A table, view or partitioned table: `kind` is pg_class.relkind."""

    kind: str
    columns: dict[str, ColumnInfo]


def quoted_name(parts: Sequence[str]) -> str:
    """Given (table,) or (schema, table), return it quoted as PostgreSQL reads it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def table_info(connection: psycopg.Connection, parts: Sequence[str]) -> TableInfo | None:
    """Return what is known of the table, or None if this role finds no such table."""
    rows = connection.execute(query("catalog", "columns"), {"name": quoted_name(parts)}).fetchall()
    if not rows:
        return None
    columns = [ColumnInfo(name=row[1], type=row[2], nullable=row[3]) for row in rows]
    return TableInfo(kind=rows[0][0], columns={column.name: column for column in columns})
