"""Settling on PostgreSQL: which minutes are open, what the ledger says of them, the evidence, and its effect."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.model import PAST_LIMIT, RESEND_LIMIT, SettledBy, State
from meterctl.core.settlement import QUIET_MIN, SERIES_MIN, Books, Doubt, HeldEvent, Series, Verdict, Window
from meterctl.ports import Settled, SettledEvent
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query

WEIGHTS = {"sum": sql.SQL("value"), "count": sql.SQL("1::numeric"), "last": sql.SQL("value")}
"""Formula → what one event adds to Stripe's total, or may be that total alone."""


class PostgresSettlements:
    """`SettlementLedger` of one meter."""

    def __init__(self, connection: psycopg.Connection, *, event_name: str, formula: str, run_id: int) -> None:
        self._connection = connection
        self._scope = {"event_name": event_name, "run_id": run_id}
        self._weight = WEIGHTS[formula]
        self._formula = formula

    def windows(self, now: datetime) -> list[Window]:
        """Return the customers and minutes whose doubts are old and whose next read may tell something.

        None of a meter that keeps the last value: its doubts are sent again.
        """
        if self._formula == "last":
            return []
        parameters = {
            "doubt_horizon": now - RESEND_LIMIT,
            "series_before": now - SERIES_MIN,
            "recovered_before": now - QUIET_MIN,
        }
        with transaction(self._connection, read_only=True):
            return [Window(**row) for row in self._fetch("windows", parameters)]

    def books(self, window: Window) -> Books:
        """Return what the ledger says of the window now."""
        with transaction(self._connection, read_only=True):
            return self._books(window)

    def _books(self, window: Window) -> Books:
        row = self._fetch("books", _of(window))[0]
        doubts = zip(row["doubt_ids"], row["doubt_weights"], row["period_ends"], strict=True)
        return Books(
            accepted=row["accepted"],
            accepted_size=row["accepted_size"],
            doubts=tuple(Doubt(id=id_, weight=weight, period_end=end) for id_, weight, end in doubts),
            last_attempt_at=row["last_attempt_at"],
            is_sending=row["is_sending"],
        )

    def note(self, window: Window, total: Decimal, books: Books, *, read_at: datetime) -> Series:
        """Add a read to the window's series, or begin a new one where it differs; return the series."""
        reading = _of(window) | {
            "stripe_total": total,
            "accepted_total": books.accepted,
            "doubt_ids": list(books.doubt_ids),
            "admissible_from": books.admissible_from,
            "read_at": read_at,
        }
        with transaction(self._connection):
            self._connection.execute(query("settle", "break"), self._scope | reading)
            return Series(**self._fetch("note", reading)[0])

    def conclude(
        self, window: Window, series: Series, verdict: Verdict, books: Books, *, now: datetime, grace: timedelta
    ) -> Settled | None:
        """Write down what the series proves, unless the ledger has moved on since its first read: then return None."""
        with transaction(self._connection):
            self._connection.execute(query("settle", "lock_doubts"), self._scope | _of(window))
            found = self._books(window)
            if found != books or not found.admits_read(series.first_seen):
                return None
            self._connection.execute(query("settle", "conclude"), _decision(series, verdict, now))
            if verdict.held_reason is not None:
                self._hold(books.doubt_ids, verdict.held_reason)
                return Settled(held_reason=verdict.held_reason, held_ids=books.doubt_ids)
            return Settled(
                present=accept(self._connection, verdict.present_ids, SettledBy.TOTALS, now, grace),
                absent=put_back(self._connection, verdict.absent_ids, now),
            )

    def _hold(self, ids: Sequence[int], held_reason: str) -> None:
        self._connection.execute(query("settle", "hold"), {"ids": list(ids), "held_reason": held_reason})

    def _fetch(self, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        text = query("settle", name)
        statement = sql.SQL(text).format(weight=self._weight) if name == "books" else sql.SQL(text)
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, self._scope | parameters).fetchall()


def _of(window: Window) -> dict[str, Any]:
    return {"customer": window.customer, "minute": window.minute}


def _decision(series: Series, verdict: Verdict, now: datetime) -> dict[str, Any]:
    return {
        "series_id": series.id,
        "decision": verdict.held_reason or "settled",
        "now": now,
        "present_ids": list(verdict.present_ids),
        "absent_ids": list(verdict.absent_ids),
    }


def accept(
    connection: psycopg.Connection,
    ids: Sequence[int],
    settled_by: SettledBy,
    now: datetime,
    grace: timedelta,
    *,
    reason: str | None = None,
) -> tuple[SettledEvent, ...]:
    """Accept doubtful events within the caller's transaction; return those that still were in doubt."""
    rows = connection.execute(
        query("settle", "accept"),
        {"ids": list(ids), "settled_by": settled_by.value, "now": now, "grace": grace, "reason": reason},
    ).fetchall()
    _decide_reports(connection, "explained", [row[0] for row in rows])
    return tuple(SettledEvent(id=row[0], source_row_id=row[1], quantity=row[2], late=row[3]) for row in rows)


def put_back(
    connection: psycopg.Connection, ids: Sequence[int], now: datetime, *, reason: str | None = None
) -> tuple[SettledEvent, ...]:
    """Make doubtful events due again, expired, or rejected if Stripe reported them, within the caller's transaction."""
    rows = connection.execute(
        query("settle", "return"), {"ids": list(ids), "expired_before": now - PAST_LIMIT, "reason": reason}
    ).fetchall()
    _decide_reports(connection, "rejected", [row[0] for row in rows])
    return tuple(
        SettledEvent(id=row[0], source_row_id=row[2], quantity=row[3], state=State(row[1]), code=row[4]) for row in rows
    )


def _decide_reports(connection: psycopg.Connection, verdict: str, ids: Sequence[int]) -> None:
    connection.execute(query("settle", "explain"), {"verdict": verdict, "ids": list(ids)})


def held_events(connection: psycopg.Connection, event_names: Sequence[str], *, limit: int) -> list[HeldEvent]:
    """Return what a person has to decide."""
    parameters = {"event_names": list(event_names), "limit": limit}
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return [HeldEvent(**row) for row in cursor.execute(query("settle", "held"), parameters).fetchall()]


def assume(
    connection: psycopg.Connection,
    ids: Sequence[int],
    *,
    present: bool,
    reason: str,
    now: datetime,
    grace: timedelta,
) -> list[int]:
    """Decide doubtful events by a person's word; return the ids of those that still were in doubt."""
    with transaction(connection):
        if present:
            done = accept(connection, ids, SettledBy.PERSON, now, grace, reason=reason)
        else:
            done = put_back(connection, ids, now, reason=reason)
    return [event.id for event in done]


def doubtable(connection: psycopg.Connection, event_name: str, window: Window) -> list[dict[str, Any]]:
    """Return what the ledger takes for accepted in a customer and minute."""
    parameters = {"event_name": event_name} | _of(window)
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query("settle", "doubtable"), parameters).fetchall()


def put_in_doubt(
    connection: psycopg.Connection, ids: Sequence[int], reason: str, *, unstamp_rows: Callable[[Sequence[int]], object]
) -> list[int]:
    """Put accepted events in doubt, for Stripe's totals to settle; return the ids of those that still were accepted.

    `unstamp_rows`, given ids of accepted events, takes their stamps off within this transaction.
    """
    with transaction(connection):
        unstamp_rows(ids)
        rows = connection.execute(query("settle", "doubt"), {"ids": list(ids), "reason": reason}).fetchall()
    return sorted(row[0] for row in rows)
