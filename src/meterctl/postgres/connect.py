"""Connections and transactions. psycopg's errors become ours here, and nowhere else.

Nothing is set for a session, so that PgBouncer's transaction mode may stand between: each transaction says what it
needs with SET LOCAL, and statements are never prepared by name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
from psycopg import errors as pg

from meterctl.errors import ConfigurationError, InputError, MeterctlError, NotPermittedError, UnavailableError

Connection = psycopg.Connection
"""What commands hand to the adapters, without a need to know psycopg."""

STATEMENT_TIMEOUT = timedelta(minutes=10)
LOCK_TIMEOUT = timedelta(seconds=2)
IDLE_TIMEOUT = timedelta(minutes=1)
"""How long a transaction may wait for its client: a machine suspended in the midst of one must not keep its locks."""

CONNECT_TIMEOUT_S = 10


def connect(conninfo: str, *, application_name: str = "meterctl") -> psycopg.Connection:
    """Open a connection in autocommit mode. Raises the MeterctlError that fits the cause."""
    with translated("connecting to PostgreSQL"):
        return psycopg.connect(
            conninfo,
            autocommit=True,
            application_name=application_name,
            connect_timeout=CONNECT_TIMEOUT_S,
            client_encoding="utf8",
            prepare_threshold=None,
        )


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
            f"SET LOCAL idle_in_transaction_session_timeout = {_ms(IDLE_TIMEOUT)};"
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
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!a} is no UTF-8 text", hint="the ledger holds none such") from error
    except psycopg.Error as error:
        ours = _translation(error, doing)
        if ours is None:
            raise
        raise ours from error


_KINDS: tuple[tuple[tuple[type[psycopg.Error], ...], type[MeterctlError], str], ...] = (
    (
        (pg.InvalidPassword, pg.InvalidAuthorizationSpecification),
        NotPermittedError,
        "check user and password in DATABASE_URL",
    ),
    (
        (pg.InsufficientPrivilege,),
        NotPermittedError,
        "`meterctl db check` names the GRANT that is missing",
    ),
    (
        (pg.ReadOnlySqlTransaction,),
        ConfigurationError,
        "this server is read-only (a replica?); use the primary",
    ),
    ((pg.InvalidCatalogName,), ConfigurationError, "check the database name in DATABASE_URL"),
    ((pg.UndefinedTable, pg.UndefinedColumn), ConfigurationError, "run `meterctl db check`"),
    (
        (psycopg.OperationalError, psycopg.InterfaceError),
        UnavailableError,
        "nothing is lost; run again when PostgreSQL is back",
    ),
)
"""psycopg's errors → ours, with what to do. First match counts."""

_WHILE_CONNECTING: tuple[tuple[str, type[MeterctlError], str], ...] = (
    ("too many connections", UnavailableError, "nothing is lost; run again, or raise the limit of connections"),
    ("permission denied for database", NotPermittedError, "GRANT CONNECT ON DATABASE … TO … helps"),
    ("password", NotPermittedError, "check user and password in DATABASE_URL"),
    ("no pg_hba.conf entry", NotPermittedError, "let this host and role in (pg_hba.conf)"),
    ('role "', NotPermittedError, "check the user in DATABASE_URL"),
    ('database "', ConfigurationError, "check the database name in DATABASE_URL"),
)
"""Errors of a connection's start carry no SQLSTATE on this side of the wire; the server's words remain."""


def _translation(error: psycopg.Error, doing: str) -> MeterctlError | None:
    message = f"{doing}: {_first_line(error)}"
    if isinstance(error, pg.FeatureNotSupported) and "during recovery" in str(error):
        return ConfigurationError(message, hint="this server is read-only (a replica?); use the primary")
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None and _is_refusal(str(error)):
        refusals = (ours(message, hint=hint) for words, ours, hint in _WHILE_CONNECTING if words in str(error))
        if (refusal := next(refusals, None)) is not None:
            return refusal
    return next((ours(message, hint=hint) for theirs, ours, hint in _KINDS if isinstance(error, theirs)), None)


def _is_refusal(text: str) -> bool:
    """Whether the server turned the connection down, or the client had not what it was asked for."""
    return "FATAL" in text or "no password supplied" in text


def _first_line(error: psycopg.Error) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
