"""Clocks. Time that decides about money is PostgreSQL's (`postgres/clock.py`); this host's only measures spans."""

import time
from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The instant that decides, aware UTC."""

    def now(self) -> datetime:
        """Return the current instant."""
        ...


class HostClock(Protocol):
    """This host's stopwatch."""

    def elapsed_s(self) -> float:
        """Return seconds that also pass while the machine is suspended."""
        ...

    def wall_s(self) -> float:
        """Return wall-clock seconds; may jump."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemHostClock:
    """The real one."""

    def elapsed_s(self) -> float:
        """Return CLOCK_BOOTTIME where there is one: unlike CLOCK_MONOTONIC it counts a suspended night."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def wall_s(self) -> float:
        """Return the wall clock."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
