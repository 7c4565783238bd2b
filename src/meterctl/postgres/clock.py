"""PostgreSQL's clock: the one that decides."""

from datetime import UTC, datetime, timedelta

import psycopg

from meterctl.clock import HostClock
from meterctl.postgres.connect import translated

ANCHOR_AGE_MAX_S = 30.0


class PostgresClock:
    """The server's instant, read every 30 s and carried on with this host's stopwatch in between."""

    def __init__(self, connection: psycopg.Connection, host_clock: HostClock) -> None:
        self._connection = connection
        self._host_clock = host_clock
        self._anchor()

    def now(self) -> datetime:
        """Return PostgreSQL's current instant, aware UTC."""
        elapsed_s = self._host_clock.elapsed_s() - self._anchored_s
        if elapsed_s > ANCHOR_AGE_MAX_S:
            self._anchor()
            elapsed_s = 0.0
        return self._anchored_at + timedelta(seconds=elapsed_s)

    def _anchor(self) -> None:
        with translated("reading PostgreSQL's clock"):
            row = self._connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None  # noqa: S101 -- a SELECT without FROM always gives a row
        self._anchored_at: datetime = row[0].astimezone(UTC)
        self._anchored_s = self._host_clock.elapsed_s()
