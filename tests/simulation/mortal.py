"""Processes that may end between any two effects: before or after a commit, before or after an exchange."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from meterctl.core.model import MeterEvent, Outcome
from meterctl.ports import MeterEvents


class Killed(BaseException):
    """The process is gone: nothing catches this."""


@dataclass(kw_only=True)
class Fate:
    """Says at each effect whether it is the last one of its process. Rate 0: it lives, or `dies_at` the nth effect."""

    chance: random.Random
    kill_rate: float = 0.0
    drop_rate: float = 0.0
    dies_at: int | None = None

    def perhaps_die(self) -> None:
        if self.dies_at is not None:
            self.dies_at -= 1
        if self.dies_at == 0 or (self.kill_rate and self.chance.random() < self.kill_rate):
            raise Killed

    def perhaps_drop(self, connection: psycopg.Connection) -> None:
        """The database connection breaks."""
        if self.drop_rate and self.chance.random() < self.drop_rate:
            connection.close()
            raise psycopg.OperationalError("the connection was lost")


class MortalConnection:
    """A connection each of whose commits may be the last thing the process does."""

    def __init__(self, connection: psycopg.Connection, fate: Fate) -> None:
        self._connection, self._fate = connection, fate
        self._is_open = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """The outermost block commits; those within are savepoints."""
        if self._is_open:
            with self._connection.transaction() as inner:
                yield inner
            return
        self._is_open = True
        try:
            with self._connection.transaction() as outer:
                yield outer
                self._fate.perhaps_die()
                self._fate.perhaps_drop(self._connection)
            self._fate.perhaps_die()
            self._fate.perhaps_drop(self._connection)
        finally:
            self._is_open = False


class MortalEvents:
    """Calls around which the process may end, and before and after which something may happen elsewhere."""

    def __init__(
        self, events: MeterEvents, fate: Fate, meanwhile: Callable[[], None], afterwards: Callable[[], None]
    ) -> None:
        self._events, self._fate, self._meanwhile, self._afterwards = events, fate, meanwhile, afterwards

    def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
        self._fate.perhaps_die()
        self._meanwhile()
        outcome = self._events.create(event, idempotency_key=idempotency_key)
        self._afterwards()
        self._fate.perhaps_die()
        return outcome
