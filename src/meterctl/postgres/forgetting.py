"""Forgetting a test-mode ledger: batch by batch, so that a killed command has forgotten whole events only.

Each batch is one transaction that takes the stamps off and deletes the events that brought them. The ledger stays bound
to its test account until nothing is left, so that no live report can start from half of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors as pg

from meterctl.errors import UnavailableError
from meterctl.postgres.catalog import fetch
from meterctl.postgres.connect import transaction
from meterctl.postgres.forget import MeterPart, StampedTable, require_no_report
from meterctl.postgres.queries import query

BATCH_SIZE = 500
"""Events forgotten in one transaction; an event takes those with it that it replaced."""

BATCH_TIMEOUT = timedelta(seconds=30)
"""How long the application may wait for the rows of a batch."""

SAMPLES_MAX = 5

WAITED_TOO_LONG = (pg.LockNotAvailable, pg.QueryCanceled)
"""A lock within the application's own triggers: trying row by row would wait row by row."""

FORGOTTEN_WITH = {"unstamped", "foreign", "gone"}
"""What a row may be for its event to go: it bears no stamp of ours."""

WHY_KEPT = {
    "stamped": "the stamp stays: another transaction has the row locked, or a trigger puts the stamp back",
    "changed": "the row has another time than what was billed, so whose stamp it bears cannot be told",
    "unseen": "the row is not visible here, so whether it bears a stamp cannot be told",
}
"""What else a row may be → why its event is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """An event that was not forgotten, for its row may bear the stamp of a test."""

    meter: str
    event_id: int
    row_id: str | None
    reason: str


@dataclass(kw_only=True, slots=True)
class Forgotten:
    """What was done. `kept` holds a few examples of the `kept_count` events. `left_test_mode`: nothing is left."""

    event_count: int = 0
    unstamped_count: int = 0
    run_count: int = 0
    kept_count: int = 0
    kept: list[Kept] = field(default_factory=list)
    left_test_mode: bool = False

    def keep(self, one: Kept) -> None:
        """Note an event that stays: each reason with a few examples."""
        self.kept_count += 1
        if sum(other.reason == one.reason for other in self.kept) < SAMPLES_MAX and len(self.kept) < SAMPLES_MAX**2:
            self.kept.append(one)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Event:
    """An event of a batch; `row_id` is None unless it was accepted, so that its row may be stamped."""

    id: int
    row_id: str | None


def forget(
    connection: psycopg.Connection, parts: Sequence[MeterPart], *, between: Callable[[], None] = lambda: None
) -> Forgotten:
    """Forget all that can be; the caller holds the locks of all meters. `between` is called after each batch."""
    done = Forgotten()
    for part in parts:
        for events in _batches(connection, part):
            with transaction(connection, statement_timeout=BATCH_TIMEOUT):
                _forget(connection, part, events, done)
            between()
    if not done.kept_count:
        _leave_test_mode(connection, done)
    return done


def _batches(connection: psycopg.Connection, part: MeterPart) -> Iterator[list[_Event]]:
    after_id = 0
    while True:
        parameters = {"meter": part.meter, "after_id": after_id, "batch_size": BATCH_SIZE}
        with transaction(connection, read_only=True):
            events = [
                _Event(id=row["id"], row_id=row["row_id"])
                for row in fetch(connection, query("forget", "page"), parameters)
            ]
        if not events:
            return
        yield events
        after_id = events[-1].id


def _forget(connection: psycopg.Connection, part: MeterPart, events: Sequence[_Event], done: Forgotten) -> None:
    """Forget events within a savepoint: a row whose stamp the application refuses to let go costs the others nothing.

    It is found by halving.
    """
    try:
        with connection.transaction():
            attempt = _attempt(connection, part, events)
            # Deferred triggers of the application fail here, inside the savepoint, and not at our commit.
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.Error as error:
        if connection.closed:
            raise
        if len(events) > 1 and not isinstance(error, WAITED_TOO_LONG):
            middle = len(events) // 2
            _forget(connection, part, events[:middle], done)
            _forget(connection, part, events[middle:], done)
            return
        attempt = Forgotten()
        for event in events:
            attempt.keep(_kept(part, event, str(error).splitlines()[0]))
    _add(done, attempt)


def _kept(part: MeterPart, event: _Event, reason: str) -> Kept:
    return Kept(meter=part.meter, event_id=event.id, row_id=event.row_id, reason=reason)


def _add(done: Forgotten, attempt: Forgotten) -> None:
    done.event_count += attempt.event_count
    done.unstamped_count += attempt.unstamped_count
    unnamed_count = attempt.kept_count - len(attempt.kept)
    for one in attempt.kept:
        done.keep(one)
    done.kept_count += unnamed_count


def _attempt(connection: psycopg.Connection, part: MeterPart, events: Sequence[_Event]) -> Forgotten:
    """Take the stamps off, look what became of the rows, and delete the events whose rows bear none of ours."""
    attempt = Forgotten()
    verdicts = {event.id: "unstamped" for event in events}
    stamped = [event for event in events if event.row_id is not None]
    if part.table is not None and stamped:
        parameters = _parameters(part.table, stamped)
        freed = connection.execute(part.table.compose("unstamp"), parameters)
        attempt.unstamped_count = sum(is_free for (is_free,) in freed)
        judged = connection.execute(part.table.verdicts("event.id = ANY (%(ids)s)"), parameters)
        verdicts |= {event_id: verdict for event_id, _, verdict in judged}
    ids = [event_id for event_id, verdict in verdicts.items() if verdict in FORGOTTEN_WITH]
    attempt.event_count = connection.execute(query("forget", "delete"), {"ids": ids}).rowcount
    for event in events:
        if verdicts[event.id] not in FORGOTTEN_WITH:
            attempt.keep(_kept(part, event, WHY_KEPT[verdicts[event.id]]))
    return attempt


def _parameters(table: StampedTable, stamped: Sequence[_Event]) -> dict[str, Any]:
    return {
        "ids": [event.id for event in stamped],
        "row_ids": [event.row_id for event in stamped],
        "sees_all": table.sees_all,
    }


def _leave_test_mode(connection: psycopg.Connection, done: Forgotten) -> None:
    with transaction(connection):
        require_no_report(connection)
        (ledger,) = fetch(connection, query("forget", "is_empty"))
        if not ledger["is_empty"]:
            raise UnavailableError("events came in meanwhile; the ledger is in test mode still", hint="run it again")
        done.run_count = connection.execute(query("forget", "delete_runs")).rowcount
        connection.execute(query("forget", "delete_identity"))
    done.left_test_mode = True
