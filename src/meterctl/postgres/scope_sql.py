"""A run's scope in SQL: the condition on an event `e`, and its parameters."""

from typing import Any

from psycopg import sql

from meterctl.core.scope import Scope


def in_scope(scope: Scope) -> sql.SQL:
    """Return the condition under which an event `e` is the run's to touch."""
    if scope.row_ids:
        return sql.SQL("e.source_row_id = ANY (%(row_ids)s)")
    if scope.span is not None:
        return sql.SQL("e.occurred_at >= %(span_since)s AND e.occurred_at < %(span_until)s")
    return sql.SQL("true")


def scope_parameters(scope: Scope) -> dict[str, Any]:
    """Return what `in_scope` asks for."""
    span = scope.span
    return {
        "row_ids": list(scope.row_ids),
        "span_since": span.since if span else None,
        "span_until": span.until if span else None,
    }
