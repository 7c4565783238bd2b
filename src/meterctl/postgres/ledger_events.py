"""Finding events of the ledger: by id, identifier, state, code, meter, customer, usage row or time of usage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.event_group import EventGroup
from meterctl.postgres.connect import Connection, transaction
from meterctl.postgres.queries import query

Event = Mapping[str, Any]
"""A row of the ledger by column, with `replaced_by`."""

ID_MAX = 2**63 - 1
"""Largest bigint: what is larger is no event's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which events. What is None or empty does not restrict; `since` is inclusive, `until` exclusive."""

    ids: tuple[int, ...] = ()
    identifiers: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    code: str | None = None
    without_code: str | None = None
    meter: str | None = None
    customer: str | None = None
    row_ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def filters(self) -> tuple[sql.Composed, dict[str, Any]]:
        """Return the conditions and their parameters."""
        conditions: dict[LiteralString, object] = {
            "event.id = ANY (%(ids)s::bigint[])": self.ids,
            "event.identifier = ANY (%(identifiers)s)": self.identifiers,
            "event.state = ANY (%(states)s)": self.states,
            # The summary calls what has expired by that code; a row that came too old has no other.
            "(event.error_code = %(code)s OR (event.state = 'expired' AND %(code)s = 'expired'))": self.code,
            "event.error_code IS DISTINCT FROM %(without_code)s": self.without_code,
            "(event.event_name = %(meter)s OR event.meter = %(meter)s)": self.meter,
            "event.customer = %(customer)s": self.customer,
            "event.source_row_id = ANY (%(row_ids)s)": self.row_ids,
            "event.occurred_at >= %(since)s": self.since,
            "event.occurred_at < %(until)s": self.until,
        }
        given = [sql.SQL(text) for text, value in conditions.items() if value]
        names = ("code", "without_code", "meter", "customer", "since", "until")
        lists = {name: list(getattr(self, name)) for name in ("ids", "identifiers", "states", "row_ids")}
        return sql.SQL(" AND ").join(given or [sql.SQL("true")]), {n: getattr(self, n) for n in names} | lists


def select(connection: Connection, selection: Selection, limit: int | None) -> list[Event]:
    """Return the events of a selection, newest first."""
    filters, parameters = selection.filters()
    text = sql.SQL(query("ledger_admin", "select")).format(filters=filters)
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(text, parameters | {"limit": limit}).fetchall())


def select_groups(connection: Connection, selection: Selection) -> list[EventGroup]:
    """Return what a selection holds, largest group first: a few bytes an event, however many there are."""
    filters, parameters = selection.filters()
    text = sql.SQL(query("ledger_admin", "groups")).format(filters=filters)
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return [EventGroup(**row) for row in cursor.execute(text, parameters)]


def unknown_ids(connection: Connection, ids: Iterable[int]) -> list[int]:
    """Return those ids that no event has."""
    asked = list(dict.fromkeys(ids))
    possible = [one for one in asked if one <= ID_MAX]
    with transaction(connection, read_only=True):
        rows = connection.execute(query("ledger_admin", "existing"), {"ids": possible}).fetchall()
    known = {row[0] for row in rows}
    return [one for one in asked if one not in known]


def chains(connection: Connection, ids: Sequence[int]) -> dict[int, list[Event]]:
    """Return for each event those it replaced and was replaced by, itself included, in the order they were issued."""
    found: dict[int, list[Event]] = {}
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(query("ledger_admin", "chains"), {"ids": list(ids)}):
            found.setdefault(row.pop("asked"), []).append(row)
    return found
