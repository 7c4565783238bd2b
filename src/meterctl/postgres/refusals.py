"""What PostgreSQL itself says against the operator's own words: a `where`, a time zone. Nothing is read or changed."""

from collections.abc import Callable
from functools import partial

import psycopg
from psycopg import sql

from meterctl.postgres.catalog import Parts, fetch
from meterctl.postgres.queries import query
from meterctl.postgres.wanted import suggestion


def refusal(connection: psycopg.Connection, attempt: Callable[[], object]) -> psycopg.Error | None:
    """Return PostgreSQL's answer if it refuses the statement, and leave the transaction whole."""
    try:
        with connection.transaction():
            attempt()
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        return error
    return None


def refused_condition(connection: psycopg.Connection, table: Parts, where: str) -> psycopg.Error | None:
    """Return PostgreSQL's answer to a condition on a table's rows, tried apart from all else, if it refuses it."""
    own = sql.SQL(where)  # the operator's own SQL, which is to be tried
    try_it = sql.SQL("EXPLAIN SELECT FROM {} AS u WHERE (\n{}\n)").format(sql.Identifier(*table), own)
    return refusal(connection, partial(connection.execute, try_it))


def said(error: psycopg.Error) -> str:
    """Return what PostgreSQL said, with its hint, in one line."""
    hint = f" ({error.diag.message_hint.rstrip('.')})" if error.diag.message_hint else ""
    return f"{(error.diag.message_primary or str(error)).splitlines()[0]}{hint}"


def unknown_zone(connection: psycopg.Connection, time_zone: str) -> str | None:
    """Return, where PostgreSQL does not know a time zone, what it says and which name could be meant."""
    try_it = query("catalog", "zone")
    error = refusal(connection, lambda: connection.execute(try_it, {"time_zone": time_zone}))
    if error is None:
        return None
    names = [row["name"] for row in fetch(connection, query("catalog", "zone_names"))]
    return f"PostgreSQL refuses it: {said(error)}{suggestion(time_zone, names)}"
