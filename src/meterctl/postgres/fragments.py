"""Pieces of SQL for the statements of every source. The configuration's words in them are quoted, and safe."""

from collections.abc import Mapping
from typing import LiteralString

from psycopg import sql

from meterctl.postgres.catalog import TableInfo
from meterctl.postgres.queries import query

LOCAL_TIME = "timestamp without time zone"
"""The type, as PostgreSQL writes it, whose values are instants only together with a time zone."""


def quoted(*parts: str) -> sql.SQL:
    """Return a table's or column's name quoted."""
    return raw(sql.Identifier(*parts).as_string(None))


def raw(text: str) -> sql.SQL:
    """Return SQL of the operator's own as it stands; psycopg would read a single `%` as a parameter."""
    return sql.SQL(text.replace("%", "%%"))


def at_zone(table: TableInfo | None, column: str, time_zone: str | None) -> str:
    """Return what follows a column's value to make it an instant: nothing, unless the column's type lacks the zone.

    The same text behind an instant makes it a value of the column. Where clocks are set back, an hour of local time
    means two instants, and PostgreSQL takes the later; where they are set forward, it reads an hour that never was as
    the one after it (PostgreSQL docs, B.2).
    """
    found = table.columns.get(column) if table else None
    if time_zone is None or found is None or found.base_type != LOCAL_TIME:
        return ""
    return f" AT TIME ZONE {sql.Literal(time_zone).as_string(None)}"


def event_identifier(text: LiteralString) -> sql.Composed:
    """Given an expression for a template's text, return the one for the identifier."""
    return sql.SQL(query("event", "identifier")).format(text=sql.SQL(text))


def period_end(*, instant: LiteralString, subscription: LiteralString) -> sql.Composed:
    """Return the end of the billing period that the instant lies in, by a subscription's own bounds."""
    return sql.SQL(query("event", "period_end")).format(instant=sql.SQL(instant), subscription=sql.SQL(subscription))


def payload_of_columns(payload: Mapping[str, str]) -> sql.Composable:
    """Given payload key → column of `u`, return the object of those that are neither NULL nor empty, as jsonb."""
    if not payload:
        return sql.SQL("'{}'::jsonb")
    pairs = sql.SQL(", ").join(
        sql.SQL("{}, nullif(u.{}::text, '')").format(raw(sql.Literal(key).as_string(None)), quoted(column))
        for key, column in payload.items()
    )
    return sql.SQL("jsonb_strip_nulls(jsonb_build_object({}))").format(pairs)
