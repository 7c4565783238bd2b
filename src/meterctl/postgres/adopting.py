"""Carrying out an adoption as it was shown.

Use a direct connection, not PgBouncer's transaction mode: an index is built outside of transactions, so its time-outs
are set for the session.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg

from meterctl.errors import ConfigurationError, LockedError, NotPermittedError, UnavailableError
from meterctl.postgres.adopt import LOCK_TIMEOUT, SCAN_TIMEOUT, Adoption, Step
from meterctl.postgres.connect import connect, transaction, translated
from meterctl.postgres.queries import query


def require_rights(adoption: Adoption) -> None:
    """Raise NotPermittedError naming the owner of what is to be changed, unless this role may change it."""
    if adoption.obstacles:
        raise NotPermittedError("\n  ".join(("this role may not do that", *adoption.obstacles)))


def carry_out(connection: psycopg.Connection, conninfo: str, shown: Adoption, plan: Callable[[], Adoption]) -> None:
    """Do what was shown. `plan` makes the plan anew, for things may have changed while a person was reading it.

    Raises LockedError where another adoption is under way, UnavailableError where the table is busy.
    """
    with _only_one(conninfo):
        if plan().steps != shown.steps:
            raise UnavailableError("the tables changed meanwhile; nothing was done", hint="run it again")
        for step in shown.steps:
            with _explained():
                _carry_out(connection, step)


@contextmanager
def _only_one(conninfo: str) -> Iterator[None]:
    """Hold a lock in an idle transaction of another connection: it frees itself however we end."""
    with connect(conninfo, application_name="meterctl db adopt") as connection, transaction(connection):
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        row = connection.execute(query("adopt", "try_lock")).fetchone()
        if not (row and row[0]):
            raise LockedError("another `db adopt` is under way", hint="run it again when that one has ended")
        yield


def _carry_out(connection: psycopg.Connection, step: Step) -> None:
    if step.in_transaction:
        with transaction(connection, lock_timeout=LOCK_TIMEOUT, statement_timeout=SCAN_TIMEOUT):
            for statement in step.statements:
                connection.execute(statement)
        return
    with translated("building the index"), _without_timeouts(connection):
        for statement in step.statements:
            connection.execute(statement)


@contextmanager
def _without_timeouts(connection: psycopg.Connection) -> Iterator[None]:
    """It waits for every older transaction: that is no reason to leave an invalid index behind."""
    connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("RESET statement_timeout; RESET lock_timeout")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UnavailableError as error:
        if isinstance(error.__cause__, pg.LockNotAvailable):
            raise UnavailableError(
                f"the table is busy: a transaction kept it locked for {LOCK_TIMEOUT.total_seconds():.0f} s",
                hint="try again; what was done before this statement stays done",
            ) from error
        if isinstance(error.__cause__, pg.QueryCanceled):
            raise UnavailableError(
                f"the table would have been locked for more than {SCAN_TIMEOUT.total_seconds():.0f} s; nothing changed",
                hint="CREATE INDEX CONCURRENTLY on the meter's occurred_at column first, then try again",
            ) from error
        raise
    except pg.UniqueViolation as error:
        raise ConfigurationError(
            f"{error.diag.message_primary}: {error.diag.message_detail}",
            hint="leave one row of each, then run `meterctl db adopt` again",
        ) from error
    except (pg.DuplicateColumn, pg.DuplicateTable) as error:
        raise ConfigurationError(
            f"something of that name is there already: {error.diag.message_primary}",
            hint="rename or drop it if it is not meterctl's, then run `meterctl db adopt` again",
        ) from error
