"""The ledger of one meter as one run sees it: claims are committed before a byte goes out, answers as they come in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.model import RESEND_LIMIT, Claim, Heard, MeterEvent, State
from meterctl.core.scope import Scope
from meterctl.core.settlement import UNDECIDED_MAX
from meterctl.core.state import Transition
from meterctl.logs import get_logger
from meterctl.ports import Claimed, ClaimRequest, KindCount, OpenCounts, Undeliverable
from meterctl.postgres.connect import transaction
from meterctl.postgres.plans import Plan, plan_of
from meterctl.postgres.queries import query
from meterctl.postgres.scope_sql import in_scope, scope_parameters

Stamp = Callable[[Sequence[str]], int]

EVERYTHING = Scope()

LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)

TEXT_LENGTH_MAX = 1_000
"""Characters of an answer's text that the ledger keeps for each event."""

LOST_RACE = (pg.UniqueViolation, pg.DeadlockDetected, pg.LockNotAvailable)
"""Another run claimed one of these lanes at the same time. Its claim stands; ours is asked for again."""

WAITED_TOO_LONG = (pg.LockNotAvailable, pg.QueryCanceled)
"""A lock within the application's own triggers: trying row by row would wait row by row."""

log = get_logger()


class PostgresMeterLedger:
    """`MeterLedger` on PostgreSQL. `stamp_rows` marks usage rows within the transaction it is called in.

    `scope` is what the run expires, supersedes, sends and counts; the others' events wait for theirs.
    `keeps_last`: Stripe bills the last value only, so a doubt of any age is sent again, unless something newer was.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        *,
        meter: str,
        event_name: str,
        run_id: int,
        stamp_rows: Callable[[Sequence[str], datetime], int],
        scope: Scope = EVERYTHING,
        keeps_last: bool = False,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._stamp_rows = stamp_rows
        self._shared: dict[str, Any] = scope_parameters(scope) | {
            "meter": meter,
            "event_name": event_name,
            "run_id": run_id,
        }
        self._may_be_sent = sql.SQL(query("ledger", "nothing_newer_sent" if keeps_last else "minute_is_settled"))
        self._keeps_last = keeps_last
        self._only = in_scope(scope)

    def take_over(self) -> int:
        """Turn other runs' `sending` into `in_doubt`; the caller holds the meter's lock."""
        return take_over(self._connection, self._shared["event_name"], self._run_id)

    def expire(self, *, expired_before: datetime) -> list[str]:
        """Expire what was never processed and is too old now; return the rows' ids."""
        parameters = self._shared | {"expired_before": expired_before}
        with transaction(self._connection):
            rows = self._connection.execute(self._composed(query("ledger", "expire")), parameters).fetchall()
            if self._keeps_last:
                self._connection.execute(self._composed(query("ledger", "hold_too_old")), parameters)
        return [row[0] for row in rows]

    def supersede(self) -> int:
        """Give up what a newer level of its period has made worthless; return how many events."""
        if not self._keeps_last:
            return 0
        with transaction(self._connection):
            return self._connection.execute(self._composed(query("ledger", "supersede")), self._shared).rowcount

    def stamp(self, row_ids: Sequence[str], *, now: datetime) -> int:
        """Stamp usage rows whose event is accepted; locked rows are left for later. Return how many were stamped."""
        with transaction(self._connection):
            return self._stamped(row_ids, now)

    def oldest_lanes(self, lanes_max: int, *, doubt_horizon: datetime) -> list[str]:
        """Return the customers whose events have waited longest, at most `lanes_max`, longest first."""
        with transaction(self._connection, read_only=True):
            rows = self._fetch(
                "oldest_lanes", self._shared | {"lanes_max": lanes_max, "doubt_horizon": self._horizon(doubt_horizon)}
            )
        return [row["customer"] for row in rows]

    def exchange(
        self, answers: Sequence[tuple[Heard, Transition]], request: ClaimRequest | None, *, now: datetime
    ) -> Claimed:
        """Record answers, stamp accepted rows and claim what is next: one transaction, durable when this returns."""
        with transaction(self._connection):
            recorded = self._record(answers)
            rows = (
                heard.claim.source_row_id
                for heard, after in answers
                if after.state is State.ACCEPTED and heard.claim.event.id in recorded
            )
            self._stamped([row for row in rows if row is not None], now)
            claimed = self._claimed(request) if request else Claimed()
        return replace(claimed, recorded_ids=frozenset(recorded))

    def _record(self, answers: Sequence[tuple[Heard, Transition]]) -> set[int]:
        if not answers:
            return set()
        rows = self._connection.execute(query("ledger", "record"), _columns(answers) | {"run_id": self._run_id})
        return {row[0] for row in rows.fetchall()}

    def _stamped(self, row_ids: Sequence[str], now: datetime) -> int:
        """Stamp within a savepoint: neither a lock nor a trigger of the application may lose what was recorded.

        A row that the application refuses to have stamped is found by halving; it costs the others nothing.
        """
        if not row_ids:
            return 0
        try:
            with self._connection.transaction():
                count = self._stamp_rows(row_ids, now)
                # Deferred triggers of the application fail here, inside the savepoint, and not at our commit.
                self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            if len(row_ids) > 1 and not isinstance(error, WAITED_TOO_LONG):
                middle = len(row_ids) // 2
                return self._stamped(row_ids[:middle], now) + self._stamped(row_ids[middle:], now)
            log.warning("stamp_failed", rows=len(row_ids), row_id=row_ids[0], error=str(error).splitlines()[0])
            return 0
        return count

    def _claimed(self, request: ClaimRequest) -> Claimed:
        try:
            with self._connection.transaction():
                again = self._claim_again(request)
                fresh = self._claim_fresh(request)
        except LOST_RACE:
            return Claimed(after_customer=request.after_customer, scan_ended=False, lost_race=True)
        return Claimed(claims=(*again, *fresh.claims), after_customer=fresh.after_customer, scan_ended=fresh.scan_ended)

    def _claim_again(self, request: ClaimRequest) -> tuple[Claim, ...]:
        if not request.retry_ids:
            return ()
        rows = self._fetch("claim_again", self._claim_parameters(request))
        return tuple(_claim(row, self._run_id) for row in rows)

    def _claim_fresh(self, request: ClaimRequest) -> Claimed:
        if not request.customers and request.scan_max <= 0:
            return Claimed(after_customer=request.after_customer, scan_ended=False)
        rows = self._fetch("claim_fresh", self._claim_parameters(request))
        return Claimed(
            claims=tuple(_claim(row, self._run_id) for row in rows if row["id"] is not None),
            after_customer=rows[0]["reached_customer"],
            scan_ended=rows[0]["scan_ended"],
        )

    def explain_claim(self, request: ClaimRequest) -> Plan:
        """Return how PostgreSQL would claim, without reading an event, within the caller's transaction."""
        text = self._composed(query("ledger", "claim_fresh"))
        return plan_of(self._connection, text, self._claim_parameters(request))

    def _claim_parameters(self, request: ClaimRequest) -> dict[str, Any]:
        return self._shared | {
            "ids": list(request.retry_ids),
            "claims_max": request.fresh_max,
            "customers": list(request.customers),
            "scan_max": request.scan_max,
            "after_customer": request.after_customer,
            "now": request.now,
            "doubt_since": request.doubt_since,
            "doubt_horizon": self._horizon(request.doubt_horizon),
            "expired_before": request.expired_before,
        }

    def _fetch(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        text = self._composed(query("ledger", name))
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(text, parameters).fetchall()

    def _composed(self, text: LiteralString) -> sql.Composed:
        claim = sql.SQL(query("ledger", "claim"))
        reported_lately = sql.SQL(query("error_reports", "reported_lately"))
        return sql.SQL(text).format(
            claim=claim, only=self._only, may_be_sent=self._may_be_sent, reported_lately=reported_lately
        )

    def _horizon(self, doubt_horizon: datetime) -> datetime:
        """Return since when a doubt is too old to be sent again."""
        return LONG_AGO if self._keeps_last else doubt_horizon

    def untold(self) -> list[KindCount]:
        """Return what runs rejected or let expire that did not live to say so."""
        with transaction(self._connection, read_only=True):
            return [KindCount(**row) for row in self._fetch("untold", self._shared)]

    def count_open(self, *, now: datetime) -> OpenCounts:
        """Return what a run leaves open."""
        horizons = {"doubt_horizon": self._horizon(now - RESEND_LIMIT), "undecided_before": now - UNDECIDED_MAX}
        with transaction(self._connection, read_only=True):
            row = self._fetch("count_open", self._shared | horizons)[0]
        return OpenCounts(**row | {"problem_ids": tuple(row["problem_ids"] or ())})


def _columns(answers: Sequence[tuple[Heard, Transition]]) -> dict[str, Any]:
    """Return the answers as one array per column, for `unnest`."""
    after = [transition for _, transition in answers]
    claims = [heard.claim for heard, _ in answers]
    return {
        "ids": [claim.event.id for claim in claims],
        "attempt_counts": [claim.attempt_count for claim in claims],
        "states": [t.state.value for t in after],
        "answers_heards": [t.answers_heard for t in after],
        "ever_in_doubts": [t.ever_in_doubt for t in after],
        "settled_bys": [t.settled_by.value if t.settled_by else None for t in after],
        "accepted_ats": [t.accepted_at for t in after],
        "lates": [t.late for t in after],
        "error_codes": [_storable(t.error_code) for t in after],
        "error_messages": [_storable(t.error_message) for t in after],
        "request_ids": [_storable(t.request_id) for t in after],
        "totals_onlys": [t.totals_only for t in after],
    }


def _storable(text: str | None) -> str | None:
    """Return an answer's text as PostgreSQL can hold it: no NUL, no half characters, not a proxy's whole page."""
    if text is None:
        return None
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")[:TEXT_LENGTH_MAX]


def _claim(row: Mapping[str, Any], run_id: int) -> Claim:
    return Claim(
        event=MeterEvent(
            id=row["id"],
            event_name=row["event_name"],
            customer=row["customer"],
            identifier=row["identifier"],
            payload=row["payload"],
            timestamp=row["sent_timestamp"],
        ),
        run_id=run_id,
        attempt_count=row["attempt_count"],
        answers_heard=row["answers_heard"],
        claimed_from=State(row["claimed_from"]),
        ever_in_doubt=row["ever_in_doubt"],
        source_row_id=row["source_row_id"],
        quantity=row["quantity"],
        period_end=row["period_end"],
        proven_absent=row["proven_absent"],
    )


def take_over(connection: psycopg.Connection, event_name: str, run_id: int) -> int:
    """Turn the `sending` of runs but this one into `in_doubt`; the caller holds the meter's lock. Return how many."""
    with transaction(connection):
        return connection.execute(query("ledger", "take_over"), {"event_name": event_name, "run_id": run_id}).rowcount


def note_told(
    connection: psycopg.Connection, run_id: int, *, meters: Sequence[str], event_names: Sequence[str]
) -> None:
    """Note that what these meters had to tell by the end of this run has been printed."""
    parameters = {"run_id": run_id, "meters": list(meters), "event_names": list(event_names)}
    with transaction(connection):
        connection.execute(query("ledger", "note_told"), parameters)
        connection.execute(query("ledger", "note_reports_told"), parameters)


def undeliverable(connection: psycopg.Connection, event_names: Sequence[str]) -> list[Undeliverable]:
    """Return the open events of meters other than these, by event_name."""
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query("ledger", "undeliverable"), {"event_names": list(event_names)}).fetchall()
    return [
        Undeliverable(event_name=row["event_name"], event_count=row["event_count"], sample_ids=tuple(row["sample_ids"]))
        for row in rows
    ]
