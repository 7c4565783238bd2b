"""The index by which a run finds unreported rows: `(occurred_at, id) WHERE reported_at IS NULL`, of any name.

Without it a run reads the whole history for every page. It is built CONCURRENTLY; for a partitioned table that means
an index on ONLY the parent, one on each leaf, and ATTACH, at every level.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from meterctl.postgres.catalog import fetch, quoted_name
from meterctl.postgres.queries import query
from meterctl.settings import RowsMeter

NAME_BYTES_MAX = 63
"""Longest name PostgreSQL keeps (NAMEDATALEN - 1)."""

PARTITIONED = "p"
INDEXABLE = {"r", "p"}
"""Kinds of relation (pg_class.relkind) that can have an index: tables and partitioned tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A table or a partition, with what this role may do to it."""

    oid: int
    parent: int | None
    kind: str
    schema: str
    name: str
    owner: str
    owned: bool
    schema_quoted: str
    may_create: bool

    @property
    def sql(self) -> str:
        """The name in full, quoted."""
        return quoted_name((self.schema, self.name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """An index of the right structure; `parent` is the partitioned index it is attached to."""

    oid: int
    table_oid: int
    schema: str
    name: str
    valid: bool
    parent: int | None
    being_built: bool

    @property
    def sql(self) -> str:
        """The name in full, quoted."""
        return quoted_name((self.schema, self.name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns the index is made of."""

    id: str
    occurred_at: str
    reported_at: str

    @classmethod
    def of(cls, meter: RowsMeter) -> "Columns":
        """Return a meter's."""
        return cls(id=meter.id, occurred_at=meter.occurred_at, reported_at=meter.reported_at)

    @property
    def definition(self) -> str:
        """The index's definition behind ON table."""
        keys = f"{quoted_name((self.occurred_at,))}, {quoted_name((self.id,))}"
        return f"({keys}) WHERE {quoted_name((self.reported_at,))} IS NULL"


def relations_of(connection: psycopg.Connection, oid: int) -> list[Relation]:
    """Return the table and all partitions below it, parents first."""
    return [Relation(**row) for row in fetch(connection, query("adopt", "relations"), {"oid": oid})]


def indexes_of(connection: psycopg.Connection, tables: Sequence[Relation], columns: Columns) -> list[Index]:
    """Return the indexes of the right structure on these tables, valid or not."""
    parameters = {
        "tables": [table.oid for table in tables],
        "id": columns.id,
        "occurred_at": columns.occurred_at,
        "reported_at": columns.reported_at,
    }
    return [Index(**row) for row in fetch(connection, query("adopt", "indexes"), parameters)]


def leftovers_of(connection: psycopg.Connection, tables: Sequence[Relation]) -> list[Mapping[str, Any]]:
    """Return (schema, name, table_oid, oid) of indexes that an interrupted CREATE INDEX CONCURRENTLY left invalid."""
    return list(fetch(connection, query("adopt", "leftovers"), {"tables": [table.oid for table in tables]}))


def drop_statement(schema: str, name: str) -> str:
    """Return what removes an index while others use its table."""
    return f"DROP INDEX CONCURRENTLY {quoted_name((schema, name))};"


def index_name(table: str, columns: Columns) -> str:
    """Return the name meterctl gives the index on a table: readable, at most 63 bytes, the same every time."""
    digest = hashlib.sha256(f"{table} {columns.definition}".encode()).hexdigest()
    suffix = f"_unreported_{digest[:8]}"
    return table.encode()[: NAME_BYTES_MAX - len(suffix)].decode(errors="ignore") + suffix


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlan:
    """Decides which statements give a table its index; pure, given what is there."""

    relations: Sequence[Relation]
    indexes: Sequence[Index]
    columns: Columns

    def statements(self) -> Iterator[str]:
        """Yield them in order. None: the index is there, or cannot be (a view, a foreign table)."""
        if self.relations[0].kind in INDEXABLE:
            yield from self._give(self.relations[0], None)

    def _give(self, table: Relation, above: Index | None) -> Iterator[str]:
        own = self._usable(table, above)
        if own is not None and own.valid:
            return
        if table.kind != PARTITIONED:
            yield from self._build(table)
            return
        if own is None:
            yield f"CREATE INDEX {self._bare_name(table)} ON ONLY {table.sql} {self.columns.definition};"
        for below in self.relations:
            if below.parent == table.oid and below.kind in INDEXABLE:
                yield from self._give(below, own)
                yield from self._attach(below, own, to=self._name(table, own))

    def _build(self, table: Relation) -> Iterator[str]:
        for index in self._on(table):
            if not index.valid:
                yield drop_statement(index.schema, index.name)
        yield f"CREATE INDEX CONCURRENTLY {self._bare_name(table)} ON {table.sql} {self.columns.definition};"

    def _attach(self, below: Relation, above: Index | None, *, to: str) -> Iterator[str]:
        own = self._usable(below, above)
        if own is None or above is None or own.parent != above.oid:
            yield f"ALTER INDEX {to} ATTACH PARTITION {self._name(below, own)};"

    def _usable(self, table: Relation, above: Index | None) -> Index | None:
        """Return the index to keep: attached to the one above, or else free; an unfinished one only on a parent."""
        attached = [index for index in self._on(table) if above is not None and index.parent == above.oid]
        free = [index for index in self._on(table) if index.parent is None]
        found = sorted((*attached, *free), key=lambda index: (index not in attached, not index.valid))
        return next((index for index in found if index.valid or table.kind == PARTITIONED), None)

    def _on(self, table: Relation) -> list[Index]:
        return [index for index in self.indexes if index.table_oid == table.oid]

    def _name(self, table: Relation, index: Index | None) -> str:
        return index.sql if index else f"{quoted_name((table.schema,))}.{self._bare_name(table)}"

    def _bare_name(self, table: Relation) -> str:
        return quoted_name((index_name(table.name, self.columns),))
