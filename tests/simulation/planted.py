"""Defects switched on by tests alone: a checker that cannot fail proves nothing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any, LiteralString
from unittest.mock import patch

import psycopg
from psycopg import sql

from meterctl.actions import deliver, settle
from meterctl.cli import db_recover
from meterctl.core import model, settlement, state
from meterctl.core.model import Claim, Outcome, OutcomeKind, SettledBy, State
from meterctl.ports import Acted, Claimed
from meterctl.postgres import error_reports, settlements
from meterctl.postgres.error_reports import ErrorReports
from meterctl.postgres.ledger import PostgresMeterLedger
from meterctl.postgres.queries import query
from meterctl.postgres.recover import end_recovery
from meterctl.postgres.settlements import put_back
from meterctl.postgres.stripe_events import PostgresStripeEvents

Patches = Callable[[], list[Any]]

_verdict = state._verdict  # noqa: SLF001 -- the very decision that is to go wrong
_exchange = PostgresMeterLedger.exchange
_composed = PostgresMeterLedger._composed  # noqa: SLF001 -- as above
_handle = ErrorReports.handle
_act = PostgresStripeEvents.act
_decide_reports = settlements._decide_reports  # noqa: SLF001 -- as above


def _safe_window_ignored() -> list[Any]:
    """A doubt is sent again however old it is."""
    return [patch.object(deliver, "RESEND_LIMIT", timedelta(days=1000)), patch.object(settle, "READS_MAX", 0)]


def _answers(change: Callable[[Claim, Outcome], tuple[State, SettledBy | None, str | None] | None]) -> list[Any]:
    def verdict(claim: Claim, outcome: Outcome, *, adopting: bool) -> tuple[State, SettledBy | None, str | None]:
        return change(claim, outcome) or _verdict(claim, outcome, adopting=adopting)

    return [patch.object(state, "_verdict", verdict)]


def _already_exists_is_an_error() -> list[Any]:
    """The duplicate answer to our own repetition is taken for a rejection."""
    taken = (State.REJECTED, None, state.IDENTIFIER_TAKEN)
    return _answers(lambda _, outcome: taken if outcome.kind is OutcomeKind.ALREADY_EXISTS else None)


def _throttling_clears_a_doubt() -> list[Any]:
    """A 429 after a lost answer is believed about both attempts."""
    return _answers(
        lambda _, outcome: (State.PENDING, None, outcome.code) if outcome.kind is OutcomeKind.NOT_PROCESSED else None
    )


def _key_kept_after_an_answer() -> list[Any]:
    """The Idempotency-Key of a stored 500 is used again."""
    return [patch.object(model.Claim, "idempotency_key", property(lambda claim: f"{claim.event.identifier}:0"))]


def _one_read_believed() -> list[Any]:
    """The first summary that is read decides."""
    return [patch.object(settlement, "SERIES_MIN", timedelta(0))]


def _claim_not_committed() -> list[Any]:
    """The claim becomes durable with its answer only: after a crash nothing tells of the attempt."""
    uncommitted: dict[int, dict[str, Any]] = {}

    def exchange(self: PostgresMeterLedger, answers: Any, request: Any, *, now: Any) -> Claimed:
        connection: psycopg.Connection = self._connection
        for heard, _ in answers:
            _restore(connection, uncommitted.pop(heard.claim.event.id, None))
        claimed = _exchange(self, answers, request, now=now)
        for claim in claimed.claims:
            uncommitted[claim.event.id] = _forget(connection, claim)
        return claimed

    return [patch.object(PostgresMeterLedger, "exchange", exchange)]


COLUMNS = ("state", "claimed_from", "claimed_at", "doubt_since", "attempt_count", "run_id", "last_attempt_at")


def _forget(connection: psycopg.Connection, claim: Claim) -> dict[str, Any]:
    names = ", ".join(COLUMNS)
    row = connection.execute(f"SELECT {names} FROM meterctl.meter_events WHERE id = {claim.event.id}").fetchone()  # noqa: S608 -- our own names
    assert row is not None
    was = claim.claimed_from.value
    connection.execute(
        "UPDATE meterctl.meter_events SET state = %s, claimed_from = NULL, claimed_at = NULL, run_id = NULL,"
        " doubt_since = CASE WHEN %s = 'in_doubt' THEN doubt_since END, attempt_count = attempt_count - 1,"
        " answers_heard = least(answers_heard, attempt_count - 1) WHERE id = %s",
        [was, was, claim.event.id],
    )
    return {"id": claim.event.id, **dict(zip(COLUMNS, row, strict=True))}


def _restore(connection: psycopg.Connection, row: Mapping[str, Any] | None) -> None:
    if row is not None:
        places = ", ".join(f"{name} = %({name})s" for name in COLUMNS)
        connection.execute(f"UPDATE meterctl.meter_events SET {places} WHERE id = %(id)s", row)  # noqa: S608 -- our own names


def _stamp_before_the_answer() -> list[Any]:
    """Rows are stamped when their events are claimed."""

    def exchange(self: PostgresMeterLedger, answers: Any, request: Any, *, now: Any) -> Claimed:
        claimed = _exchange(self, answers, request, now=now)
        rows = [claim.source_row_id for claim in claimed.claims]
        self._connection.execute(
            "UPDATE usage_events SET stripe_reported_at = %s WHERE id::text = ANY (%s)", [now, rows]
        )
        return claimed

    return [patch.object(PostgresMeterLedger, "exchange", exchange)]


def _recovery_doubts_nothing() -> list[Any]:
    """After a restore everything open is sent as if it had never been."""

    def end(connection: psycopg.Connection, **given: Any) -> int:
        count = end_recovery(connection, **given)
        connection.execute(
            "UPDATE meterctl.meter_events SET state = 'pending', doubt_since = NULL, ever_in_doubt = false"
            " WHERE state = 'in_doubt'"
        )
        return count

    return [patch.object(db_recover, "end_recovery", end)]


def _levels_in_any_order() -> list[Any]:
    """An older level is sent behind a newer one."""

    def composed(self: PostgresMeterLedger, text: LiteralString) -> sql.Composed:
        if self._keeps_last:
            self._may_be_sent = sql.SQL("true")
        return _composed(self, text)

    return [patch.object(PostgresMeterLedger, "_composed", composed)]


def _report_is_a_verdict() -> list[Any]:
    """What a report names is rejected at once, whatever Stripe's totals say."""

    def handle(self: ErrorReports, event: Any) -> str:
        said = _handle(self, event)
        named = self._connection.execute(
            "SELECT meter_event_id FROM meterctl.error_samples WHERE event_id = %s AND verdict IS NULL", [event.id]
        )
        put_back(self._connection, [row[0] for row in named.fetchall()], self._now())
        return said

    return [patch.object(ErrorReports, "handle", handle)]


def _reported_is_due_again() -> list[Any]:
    """What is reported and absent is sent again under the identifier that Stripe knows."""
    return _other_sql(settlements, "return", "report.code IS NOT NULL THEN 'rejected'", "false THEN 'rejected'")


def _report_ignores_what_is_being_sent() -> list[Any]:
    """A report that comes before the answer is written down changes nothing."""
    return _other_sql(error_reports, "doubt", "'sending', ", "")


def _reported_doubt_has_an_age() -> list[Any]:
    """What is reported is doubted since its attempt, and so sent again while that is young."""
    return _other_sql(error_reports, "doubt", "'epoch'", "coalesce(event.doubt_since, event.last_attempt_at)")


def _other_sql(module: ModuleType, name: str, words: str, others: str) -> list[Any]:
    def changed(file: str, wanted: str) -> str:
        text = query(file, wanted)
        if wanted != name:
            return text
        assert words in text
        return text.replace(words, others)

    return [patch.object(module, "query", changed)]


def _explained_report_stays_open() -> list[Any]:
    """What is reported and counted is accepted, and the report left undecided."""

    def decide(connection: psycopg.Connection, verdict: str, ids: Any) -> None:
        if verdict != "explained":
            _decide_reports(connection, verdict, ids)

    return [patch.object(settlements, "_decide_reports", decide)]


def _marked_before_the_effect() -> list[Any]:
    """A report is marked as processed in a transaction of its own, before it is acted on."""

    def act(self: PostgresStripeEvents, event: Any, effect: Any, *, again: bool) -> Acted:
        _act(self, event, lambda _: ("processed", "to be acted on"), again=again)
        return _act(self, event, effect, again=True)

    return [patch.object(PostgresStripeEvents, "act", act)]


DEFECTS: Mapping[str, Patches] = {
    "safe-window-ignored": _safe_window_ignored,
    "claim-not-committed": _claim_not_committed,
    "stamp-before-answer": _stamp_before_the_answer,
    "already-exists-is-an-error": _already_exists_is_an_error,
    "throttling-clears-a-doubt": _throttling_clears_a_doubt,
    "key-kept-after-an-answer": _key_kept_after_an_answer,
    "one-read-believed": _one_read_believed,
    "levels-in-any-order": _levels_in_any_order,
    "recovery-doubts-nothing": _recovery_doubts_nothing,
    "report-is-a-verdict": _report_is_a_verdict,
    "reported-is-due-again": _reported_is_due_again,
    "report-ignores-sending": _report_ignores_what_is_being_sent,
    "reported-doubt-has-an-age": _reported_doubt_has_an_age,
    "explained-report-stays-open": _explained_report_stays_open,
    "marked-before-the-effect": _marked_before_the_effect,
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Switch a defect on within the block."""
    patches = DEFECTS[name]() if name else []
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
