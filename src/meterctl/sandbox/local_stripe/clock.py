"""The sandbox's own clock: real time, moved, stopped, or whatever the caller injects."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class Real:
    """The real clocks, kept where a test that patches module attributes (freezegun) does not reach them.

    A stopped clock in the test's thread must not stop the server's event loop.
    """

    now_s = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


def real_now() -> datetime:
    """Return the present instant, aware UTC."""
    return datetime.fromtimestamp(Real.now_s(), UTC)


class SandboxClock:
    """Every rule, `Date` header and stored instant of the sandbox goes by this clock. Thread-safe.

    `source` returns an aware instant; default is real time. `set` and `advance` shift what it says.
    """

    def __init__(self, source: Callable[[], datetime] | None = None) -> None:
        self._source = source or real_now
        self._lock = threading.Lock()
        self._offset = timedelta(0)
        self._stopped_at: datetime | None = None

    def now(self) -> datetime:
        """Return the sandbox's present instant, aware UTC."""
        with self._lock:
            return self._now()

    def set(self, instant: datetime, *, frozen: bool = False) -> None:
        """Make it `instant` (aware) now. The clock runs on from there, or stands still when `frozen`."""
        if instant.tzinfo is None:
            raise ValueError(f"The sandbox's clock needs an instant with a time zone, got {instant.isoformat()}.")
        moved = instant.astimezone(UTC)
        with self._lock:
            self._stopped_at = moved if frozen else None
            self._offset = moved - self._read_source()

    def advance(self, by: timedelta) -> datetime:
        """Move by `by` (backwards when negative), return the new present."""
        with self._lock:
            self._offset += by
            if self._stopped_at is not None:
                self._stopped_at += by
            return self._now()

    def freeze(self) -> datetime:
        """Stand still at the present instant, return it."""
        with self._lock:
            self._stopped_at = self._now()
            return self._stopped_at

    def reset(self) -> None:
        """Follow the source again."""
        with self._lock:
            self._offset = timedelta(0)
            self._stopped_at = None

    @property
    def frozen(self) -> bool:
        """Whether the clock stands still."""
        return self._stopped_at is not None

    def _now(self) -> datetime:
        return self._stopped_at if self._stopped_at is not None else self._read_source() + self._offset

    def _read_source(self) -> datetime:
        instant = self._source()
        if instant.tzinfo is None:
            raise ValueError("The clock given to LocalStripe must return instants with a time zone.")
        return instant.astimezone(UTC)
