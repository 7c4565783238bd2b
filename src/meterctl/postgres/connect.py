"""Connections and transactions. psycopg's errors become ours here, and nowhere else.

Nothing is set for a session, so that PgBouncer's transaction mode may stand between: each transaction says what it
needs with SET LOCAL, and statements are never prepared by name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
from psycopg import errors as pg

from meterctl.errors import ConfigurationError, MeterctlError, NotPermittedError, UnavailableError

STATEMENT_TIMEOUT = timedelta(minutes=10)
LOCK_TIMEOUT = timedelta(seconds=2)
CONNECT_TIMEOUT_S = 10


def connect(conninfo: str, *, application_name: str = "meterctl") -> psycopg.Connection:
    """Open a connection in autocommit mode. Raises the MeterctlError that fits the cause."""
    with translated("connecting to PostgreSQL"):
        connection = psycopg.connect(
            conninfo,
            autocommit=True,
            application_name=application_name,
            connect_timeout=CONNECT_TIMEOUT_S,
            client_encoding="utf8",
            prepare_threshold=None,
        )
    return connection


@contextmanager
def transaction(
    connection: psycopg.Connection,
    *,
    read_only: bool = False,
    statement_timeout: timedelta = STATEMENT_TIMEOUT,
    lock_timeout: timedelta = LOCK_TIMEOUT,
) -> Iterator[psycopg.Connection]:
    """Run the block as one transaction with its settings made LOCAL, committed durably at the end."""
    with translated("working in PostgreSQL"), connection.transaction():
        connection.execute(
            f"SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ {'ONLY' if read_only else 'WRITE'};"
            f"SET LOCAL statement_timeout = {_ms(statement_timeout)};"
            f"SET LOCAL lock_timeout = {_ms(lock_timeout)};"
            "SET LOCAL synchronous_commit = on;"
            "SET LOCAL TimeZone = 'UTC';"
            "SET LOCAL DateStyle = 'ISO';"
        )
        yield connection


def _ms(span: timedelta) -> int:
    return round(span.total_seconds() * 1000)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn psycopg's errors into MeterctlError with the exit code of their cause; the cause stays attached."""
    try:
        yield
    except psycopg.Error as error:
        ours = _translation(error, doing)
        if ours is None:
            raise
        raise ours from error


def _translation(error: psycopg.Error, doing: str) -> MeterctlError | None:
    message = f"{doing}: {_first_line(error)}"
    match error:
        case pg.InvalidPassword() | pg.InvalidAuthorizationSpecification():
            return NotPermittedError(message, hint="check user and password in DATABASE_URL")
        case pg.InsufficientPrivilege():
            return NotPermittedError(message, hint="grant the role what README, section Privileges, lists")
        case pg.ReadOnlySqlTransaction():
            return ConfigurationError(message, hint="this server is read-only (a replica?); use the primary")
        case pg.InvalidCatalogName():
            return ConfigurationError(message, hint="check the database name in DATABASE_URL")
        case pg.UndefinedTable() | pg.UndefinedColumn():
            return ConfigurationError(message, hint="run `meterctl db check`")
        case psycopg.OperationalError() if error.sqlstate is None and "password" in str(error):
            # Errors of the connection's start carry no SQLSTATE on the client's side; the server's words remain.
            return NotPermittedError(message, hint="check user and password in DATABASE_URL")
        case psycopg.OperationalError() if error.sqlstate is None and "does not exist" in str(error):
            return ConfigurationError(message, hint="check the names in DATABASE_URL")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return UnavailableError(message, hint="nothing is lost; run again when PostgreSQL is back")
        case _:
            return None


def _first_line(error: psycopg.Error) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
