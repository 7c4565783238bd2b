"""What the ledger says of itself: the figures of `summary` and `runs`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.model import RESEND_LIMIT, Problem
from meterctl.core.settlement import UNDECIDED_MAX
from meterctl.ports import Backlog
from meterctl.postgres.connect import Connection, transaction
from meterctl.postgres.identity import ledger_identity
from meterctl.postgres.queries import query

WINDOW = timedelta(days=35)
"""How far back accepted and late events are counted: as far as Stripe takes usage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterFigures:
    """One meter's state. `accepted` and `late` are of the last 35 days; `held_by_age` is a part of `held`.

    `unreported` rows have no event yet; those of free users, which never get one, are among them. None: no source of
    rows is configured for the meter. All accepted usage of the last 35 days before `proven_up_to` was compared with
    Stripe's totals and found equal; None: never compared.
    """

    event_name: str
    pending: int = 0
    sending: int = 0
    in_doubt: int = 0
    held: int = 0
    held_by_age: int = 0
    rejected: int = 0
    expired: int = 0
    oldest_open: datetime | None = None
    accepted: int = 0
    accepted_units: Decimal = Decimal(0)
    late: int = 0
    late_units: Decimal = Decimal(0)
    unreported: int | None = None
    oldest_unreported: datetime | None = None
    proven_up_to: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerProblem:
    """Something a person must look at, of one meter."""

    event_name: str
    problem: Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One invocation. Without `finished_at` it is still running, or has died."""

    id: int
    command: str
    mode: str
    account: str
    host: str
    pid: int
    version: str
    started_at: datetime
    finished_at: datetime | None
    exit_code: int | None
    counts: dict[str, Any] | None
    alive: bool

    @property
    def outcome(self) -> str:
        """The exit code as text, or what an unfinished run is."""
        if self.exit_code is not None:
            return str(self.exit_code)
        return "running" if self.alive else "died"


def meter_figures(connection: Connection, now: datetime, unreported: Mapping[str, Backlog]) -> list[MeterFigures]:
    """Return the figures of every meter that the ledger knows or `unreported` (by event_name) has."""
    parameters = {"since": now - WINDOW, "doubt_horizon": now - RESEND_LIMIT}
    found: dict[str, dict[str, Any]] = {
        name: {"unreported": backlog.row_count, "oldest_unreported": backlog.oldest}
        for name, backlog in unreported.items()
    }
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        for name in ("open", "accepted", "late", "proven"):
            for row in cursor.execute(query("summary", name), parameters).fetchall():
                found.setdefault(row["event_name"], {}).update(row)
    return [MeterFigures(**{**found[name], "event_name": name}) for name in sorted(found)]


def ledger_problems(connection: Connection, now: datetime) -> list[LedgerProblem]:
    """Return what is open for a person, by meter and code, without hints."""
    text = sql.SQL(query("summary", "problems")).format(
        reported_lately=sql.SQL(query("error_reports", "reported_lately"))
    )
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(text, {"undecided_before": now - UNDECIDED_MAX}).fetchall()
    return [
        LedgerProblem(
            event_name=row["event_name"],
            problem=Problem(code=row["code"], count=row["count"], sample_ids=row["sample_ids"]),
        )
        for row in rows
    ]


def latest_runs(connection: Connection, limit: int) -> list[Run]:
    """Return the newest runs first."""
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return [Run(**row) for row in cursor.execute(query("summary", "runs"), {"limit": limit}).fetchall()]


def last_good_run(connection: Connection) -> datetime | None:
    """Return when a report last ended with 0 or 10; None if none ever did."""
    with transaction(connection, read_only=True):
        row = connection.execute(query("summary", "last_good_run")).fetchone()
    return row[0] if row else None


def ledger_owner(connection: Connection) -> tuple[str, bool] | None:
    """Return (account, livemode) of the ledger; None while it belongs to nobody."""
    found = ledger_identity(connection)
    return (found["account"], found["livemode"]) if found else None
