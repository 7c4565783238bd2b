"""The ledger by hand: issue rejected events again, or close them. Nothing here talks to Stripe."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.identifier import next_identifier
from meterctl.core.value import LOCAL_PREFIX
from meterctl.errors import UnavailableError
from meterctl.postgres.connect import Connection, transaction
from meterctl.postgres.ledger_events import Event
from meterctl.postgres.queries import query

BATCH_SIZE_MAX = 500
"""Events changed in one transaction."""


class Rereading(Protocol):
    """A source of usage that can be asked again about what was rejected."""

    def reread(self, events: Sequence[Event], now: datetime) -> dict[int, dict[str, Any]]:
        """Return by event id what collecting would make of the event's usage now, within the caller's transaction."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """What a retry did: ids of the rejected events that are due again, and why others are not (id → reason)."""

    done_ids: tuple[int, ...]
    refused: Mapping[int, str]


def retry(
    connection: Connection,
    event_ids: Sequence[int],
    source: Rereading,
    event_name: str,
    reason: str,
    now: datetime,
    *,
    code: str | None = None,
) -> Retried:
    """Make at most 500 rejected events of a meter due again, in one transaction; with `code`, only while it is theirs.

    Their usage is read anew, as collecting would see it now. What Stripe rejected is issued again under a derived
    identifier; what was rejected here, and never sent, keeps its own. Raises UnavailableError if a run got in between.
    """
    common = {"event_name": event_name, "reason": reason, "now": now}
    try:
        with transaction(connection):
            judged = _judged(connection, event_ids, source, now, code=code, lock=sql.SQL("FOR UPDATE"))
            fresh = judged.rows
            _mend(connection, [event for event in judged.ready if _is_local(event)], fresh, common)
            _reissue(connection, [event for event in judged.ready if not _is_local(event)], fresh, common)
            _recode(connection, judged)
    except pg.UniqueViolation as error:
        raise UnavailableError(
            "a run collected one of these rows, or took one of these identifiers, at the same moment",
            hint="these events were not changed; run again",
        ) from error
    return judged.outcome


def judge(
    connection: Connection, event_ids: Sequence[int], source: Rereading, now: datetime, *, code: str | None = None
) -> Retried:
    """Return what `retry` would do, in a transaction that PostgreSQL holds READ ONLY."""
    with transaction(connection, read_only=True):
        return _judged(connection, event_ids, source, now, code=code, lock=sql.SQL("")).outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """Rejected events, and by their ids what they would be now, and why they cannot be retried."""

    events: Sequence[Event]
    rows: Mapping[int, Mapping[str, Any]]
    refused: Mapping[int, str]

    @property
    def ready(self) -> list[Event]:
        return [event for event in self.events if event["id"] not in self.refused]

    @property
    def outcome(self) -> Retried:
        return Retried(done_ids=tuple(event["id"] for event in self.ready), refused=self.refused)


def _judged(
    connection: Connection,
    event_ids: Sequence[int],
    source: Rereading,
    now: datetime,
    *,
    code: str | None,
    lock: sql.SQL,
) -> _Judged:
    text = sql.SQL(query("ledger_admin", "rejected")).format(lock=lock)
    with connection.cursor(row_factory=dict_row) as cursor:
        events = cursor.execute(text, {"ids": list(event_ids), "code": code}).fetchall()
    rows = source.reread(events, now)
    reasons = {event["id"]: _why_not(event, rows.get(event["id"])) for event in events}
    gone = dict.fromkeys(set(event_ids) - set(reasons), "it is no longer rejected as it was")
    return _Judged(events=events, rows=rows, refused=gone | {key: why for key, why in reasons.items() if why})


def _is_local(event: Event) -> bool:
    """Whether the event was rejected here, so that nothing was ever sent."""
    return str(event["error_code"]).startswith(LOCAL_PREFIX)


def _recode(connection: Connection, judged: _Judged) -> None:
    fresh = [(event["id"], judged.rows.get(event["id"])) for event in judged.events if _is_local(event)]
    still = [(event_id, row) for event_id, row in fresh if row is not None and row["outcome"] == "rejected"]
    if still:
        parameters = {
            "ids": [event_id for event_id, _ in still],
            "codes": [row["code"] for _, row in still],
            "messages": [row["message"] for _, row in still],
        }
        connection.execute(query("ledger_admin", "recode"), parameters)


def _why_not(event: Event, row: Mapping[str, Any] | None) -> str | None:
    """Return why an event's row cannot be billed now, or None if it can."""
    if row is not None and row["is_another_row"] and not _is_local(event):
        return "a row of another instant has its row's id by now"
    if row is None:
        return "its row is gone, stamped, without an instant of usage, or not this meter's any more"
    reasons = {
        "skipped": "its row has no subscription at its instant any more",
        "expired": "it is older than the 35 days Stripe takes",
        "rejected": f"still {row['code']}: {row['message']}",
    }
    return reasons.get(row["outcome"])


def _mend(
    connection: Connection, events: Sequence[Event], fresh: Mapping[int, Mapping[str, Any]], common: dict[str, Any]
) -> None:
    if events:
        identifiers = [fresh[event["id"]]["identifier"] for event in events]
        connection.execute(query("ledger_admin", "mend"), _columns(events, fresh, identifiers) | common)


def _reissue(
    connection: Connection, events: Sequence[Event], fresh: Mapping[int, Mapping[str, Any]], common: dict[str, Any]
) -> None:
    if events:
        identifiers = _free_identifiers(connection, [event["identifier"] for event in events])
        connection.execute(
            query("ledger_admin", "replace"), {"ids": [event["id"] for event in events], "reason": common["reason"]}
        )
        connection.execute(query("ledger_admin", "reissue"), _columns(events, fresh, identifiers) | common)


def _free_identifiers(connection: Connection, identifiers: Iterable[str]) -> list[str]:
    """Return the next identifier of each that no event has: `x~2`, or `x~3` where that exists already."""
    wanted = [next_identifier(identifier) for identifier in identifiers]
    while True:
        rows = connection.execute(query("ledger_admin", "taken"), {"identifiers": wanted}).fetchall()
        taken = {row[0] for row in rows}
        if not taken:
            return wanted
        wanted = [next_identifier(one) if one in taken else one for one in wanted]


def _columns(
    events: Sequence[Event], fresh: Mapping[int, Mapping[str, Any]], identifiers: Sequence[str]
) -> dict[str, Any]:
    rows = [fresh[event["id"]] for event in events]
    return {
        "ids": [event["id"] for event in events],
        "identifiers": list(identifiers),
        "customers": [row["customer"] for row in rows],
        "values": [row["value"] for row in rows],
        "quantities": [row["quantity"] for row in rows],
        "occurred_ats": [row["occurred_at"] for row in rows],
        "sent_timestamps": [row["sent_timestamp"] for row in rows],
        "payloads": [json.dumps(row["payload"]) for row in rows],
        "subjects": [row["subject"] for row in rows],
        "period_ends": [row["period_end"] for row in rows],
    }


def waive(connection: Connection, event_ids: Sequence[int], reason: str, *, code: str | None = None) -> list[int]:
    """Close rejected or expired events, at most 500 of them in this one transaction; return those that were.

    With `code`, only while it is theirs.
    """
    parameters = {"ids": list(event_ids), "reason": reason, "code": code}
    with transaction(connection):
        rows = connection.execute(query("ledger_admin", "waive"), parameters).fetchall()
    return [row[0] for row in rows]
