"""The lock of a meter: courtesy between runs. Safety is in the claims, which a lost lock does not weaken.

A transaction-level advisory lock in an idle transaction of its own works behind PgBouncer's transaction mode and frees
itself on any death, of the host too: the server ends the transaction when it has heard nothing for five minutes.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Self

import psycopg

from meterctl.clock import HostClock
from meterctl.errors import UnavailableError
from meterctl.postgres.connect import connect, translated
from meterctl.postgres.queries import query

IDLE_LIMIT_MIN = 5
PING_EVERY_S = 60.0
POLL_EVERY_S = 1.0


class MeterLocks:
    """The locks one run holds, on one connection in one transaction. A context manager; leaving frees them all."""

    def __init__(self, conninfo: str, *, run_label: str, host_clock: HostClock) -> None:
        self._connection = connect(conninfo, application_name=run_label)
        self._host_clock = host_clock
        self._pinged_s = host_clock.elapsed_s()
        with translated("taking the lock"):
            self._connection.execute(
                "BEGIN ISOLATION LEVEL READ COMMITTED;"
                f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_LIMIT_MIN}min';"
                "SET LOCAL statement_timeout = '1min'"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Ended before it is closed: a server is slow to notice a closed connection, and the next run may start at once.
        with suppress(psycopg.Error):
            self._connection.rollback()
        self._connection.close()

    def acquire(self, event_name: str, *, timeout_s: float, stopping: Callable[[], bool]) -> bool:
        """Try to take the meter's lock, for at most `timeout_s` seconds."""
        give_up_s = self._host_clock.elapsed_s() + timeout_s
        while not self._try(event_name):
            if stopping() or self._host_clock.elapsed_s() >= give_up_s:
                return False
            self._host_clock.sleep(POLL_EVERY_S)
        return True

    def _try(self, event_name: str) -> bool:
        with translated("taking the lock"):
            row = self._connection.execute(query("lock", "acquire"), {"event_name": event_name}).fetchone()
            # A statement with parameters leaves its portal open, and with it a snapshot that would hold back vacuum and
            # make CREATE INDEX CONCURRENTLY wait for as long as we hold the lock. The next statement closes it.
            self._connection.execute("SELECT 1")
        self._pinged_s = self._host_clock.elapsed_s()
        return bool(row and row[0])

    def holder(self, event_name: str) -> str:
        """Return who holds the meter's lock, as far as PostgreSQL shows it."""
        with translated("asking who holds the lock"):
            row = self._connection.execute(query("lock", "holder"), {"event_name": event_name}).fetchone()
        return f"{row[0]} (PostgreSQL backend {row[1]})" if row else "a run that has just ended"

    def keep(self) -> None:
        """Show the server that we live, once a minute. Raises UnavailableError when the locks are lost."""
        if self._host_clock.elapsed_s() - self._pinged_s < PING_EVERY_S:
            return
        self._pinged_s = self._host_clock.elapsed_s()
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise UnavailableError(
                "the connection that holds the lock was lost", hint="nothing is lost; run again"
            ) from error
