"""The ledger by hand: find events, issue rejected ones again, close them. Nothing here talks to Stripe."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.identifier import next_identifier
from meterctl.core.model import PAST_LIMIT
from meterctl.core.value import LOCAL_PREFIX
from meterctl.ports import RowWindow
from meterctl.postgres.connect import Connection, transaction
from meterctl.postgres.queries import query
from meterctl.postgres.rows import PostgresRows

BATCH_SIZE_MAX = 500
"""Events changed in one transaction."""

Event = Mapping[str, Any]
"""A row of the ledger by column, with `replaced_by`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which events. What is None or empty does not restrict; `since` is inclusive, `until` exclusive."""

    ids: tuple[int, ...] = ()
    identifiers: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    code: str | None = None
    meter: str | None = None
    customer: str | None = None
    row_ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def filters(self) -> tuple[sql.Composed, dict[str, Any]]:
        """Return the conditions and their parameters."""
        conditions: dict[LiteralString, object] = {
            "event.id = ANY (%(ids)s)": list(self.ids),
            "event.identifier = ANY (%(identifiers)s)": list(self.identifiers),
            "event.state = ANY (%(states)s)": list(self.states),
            "event.error_code = %(code)s": self.code,
            "(event.event_name = %(meter)s OR event.meter = %(meter)s)": self.meter,
            "event.customer = %(customer)s": self.customer,
            "event.source_row_id = ANY (%(row_ids)s)": list(self.row_ids),
            "event.occurred_at >= %(since)s": self.since,
            "event.occurred_at < %(until)s": self.until,
        }
        given = [sql.SQL(text) for text, value in conditions.items() if value]
        values = {name: getattr(self, name) for name in ("code", "meter", "customer", "since", "until")}
        lists = {name: list(getattr(self, name)) for name in ("ids", "identifiers", "states", "row_ids")}
        return sql.SQL(" AND ").join(given or [sql.SQL("true")]), values | lists


def select(connection: Connection, selection: Selection, limit: int | None) -> list[Event]:
    """Return the events of a selection, newest first."""
    filters, parameters = selection.filters()
    text = sql.SQL(query("ledger_admin", "select")).format(filters=filters)
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(text, parameters | {"limit": limit}).fetchall())


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """What a retry did: ids of the rejected events that are due again, and why others are not (id → reason)."""

    done_ids: tuple[int, ...]
    refused: Mapping[int, str]


def retry(
    connection: Connection, event_ids: Sequence[int], source: PostgresRows, event_name: str, reason: str, now: datetime
) -> Retried:
    """Make at most 500 rejected events of one meter due again, in one transaction.

    Their rows are read anew, as collecting would see them now. What Stripe rejected is issued again under a derived
    identifier; what was rejected here, and never sent, keeps its own.
    """
    with transaction(connection):
        found = _locked(connection, event_ids)
        rows = _rows_by_id(source, [event["source_row_id"] for event in found], now)
        judged = {event["id"]: _why_not(rows.get(event["source_row_id"])) for event in found}
        ready = [event for event in found if judged[event["id"]] is None]
        fresh = {event["id"]: rows[event["source_row_id"]] for event in ready}
        local = [event for event in ready if event["error_code"].startswith(LOCAL_PREFIX)]
        sent = [event for event in ready if not event["error_code"].startswith(LOCAL_PREFIX)]
        common = {"event_name": event_name, "reason": reason, "now": now}
        _mend(connection, local, fresh, common)
        _reissue(connection, sent, fresh, common)
    gone = dict.fromkeys(set(event_ids) - set(judged), "it is no longer rejected")
    return Retried(
        done_ids=tuple(event["id"] for event in ready),
        refused=gone | {event_id: why for event_id, why in judged.items() if why is not None},
    )


def _locked(connection: Connection, event_ids: Sequence[int]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query("ledger_admin", "lock_rejected"), {"ids": list(event_ids)}).fetchall()


def _rows_by_id(source: PostgresRows, row_ids: Sequence[str | None], now: datetime) -> dict[str, dict[str, Any]]:
    known = tuple(row_id for row_id in row_ids if row_id is not None)
    if not known:
        return {}
    horizon = now - PAST_LIMIT
    ever = datetime(1, 1, 1, tzinfo=UTC)
    window = RowWindow(since=ever, until=now, fresh_from=horizon, expired_before=horizon, row_ids=known)
    return {row["row_id"]: row for row in source.classified(known, window)}


def _why_not(row: Mapping[str, Any] | None) -> str | None:
    """Return why a row cannot be billed now, or None if it can."""
    if row is None:
        return "its row is gone, stamped, or not this meter's any more"
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


def waive(connection: Connection, event_ids: Sequence[int], reason: str) -> list[int]:
    """Close rejected or expired events; return those that were."""
    with transaction(connection):
        rows = connection.execute(query("ledger_admin", "waive"), {"ids": list(event_ids), "reason": reason}).fetchall()
    return [row[0] for row in rows]
