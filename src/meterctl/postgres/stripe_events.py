"""The store of Stripe's events: each once, whatever brought it; effect and mark are one transaction."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.stripe_event import DONE, StripeEvent
from meterctl.errors import InputError
from meterctl.ports import Acted
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query
from meterctl.settings import Settings

OURS = ("meterctl", "stripe_events")

ERROR_LENGTH_MAX = 1_000
"""Characters of an error's text that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventSelection:
    """Which events. What is None or empty does not restrict; `since` is inclusive, `until` exclusive, of `created`."""

    ids: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, event: StripeEvent) -> bool:
        """Whether an event that is not stored yet is among them; its status is none yet."""
        return (
            (not self.ids or event.id in self.ids)
            and (not self.types or event.type in self.types)
            and (self.since is None or event.created >= self.since)
            and (self.until is None or event.created < self.until)
        )

    def filters(self) -> tuple[sql.Composed, dict[str, Any]]:
        """Return the conditions and their parameters."""
        conditions: dict[LiteralString, object] = {
            "event.event_id = ANY (%(ids)s)": self.ids,
            "event.status = ANY (%(statuses)s)": self.statuses,
            "event.type = ANY (%(types)s)": self.types,
            "event.created >= %(since)s": self.since,
            "event.created < %(until)s": self.until,
        }
        given = [sql.SQL(text) for text, value in conditions.items() if value]
        lists = {name: list(getattr(self, name)) for name in ("ids", "statuses", "types")}
        return sql.SQL(" AND ").join(given or [sql.SQL("true")]), lists | {"since": self.since, "until": self.until}


class PostgresStripeEvents:
    """`StripeEventStore` on meterctl.stripe_events, or on the table named `table_parts`."""

    def __init__(self, connection: psycopg.Connection, table_parts: Sequence[str] | None = None) -> None:
        self._connection = connection
        self._table = sql.Identifier(*(table_parts or OURS))

    def store(self, events: Sequence[StripeEvent], *, source: str) -> list[str]:
        """Keep events; return the ids of those that are new."""
        newest = {event.id: event for event in events}
        with transaction(self._connection):
            rows = self._connection.execute(self._composed("store"), _columns(newest.values()) | {"source": source})
            return [row[0] for row in rows.fetchall()]

    def ids(self, selection: EventSelection) -> list[str]:
        """Return the ids of a selection, oldest first."""
        filters, parameters = selection.filters()
        with transaction(self._connection, read_only=True):
            rows = self._connection.execute(self._composed("ids", filters=filters), parameters).fetchall()
        return [row[0] for row in rows]

    def listed(self, selection: EventSelection, limit: int) -> list[dict[str, Any]]:
        """Return what a list shows of a selection, newest first."""
        filters, parameters = selection.filters()
        return self._fetch(self._composed("list", filters=filters), parameters | {"limit": limit})

    def shown(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return all that is kept of single events, oldest first."""
        return self._fetch(self._composed("show"), {"ids": list(ids)})

    def read(self, event_id: str) -> Acted:
        """Return an event, and what was done about it. Raises InputError where it cannot be read."""
        (row,) = self._fetch(self._composed("read"), {"event_id": event_id})
        status, at = row.pop("status"), row.pop("processed_at")
        return Acted(event=StripeEvent(**row), status=status, at=at)

    def act(self, event: StripeEvent, effect: Callable[[StripeEvent], tuple[str, str]], *, again: bool) -> Acted:
        """Carry out `effect` (event → status, outcome) and mark the event, in one transaction.

        What has been acted on is left alone, and returned as it was, unless `again`.
        """
        with transaction(self._connection):
            status, at = self._locked(event.id)
            if status in DONE and not again:
                return Acted(event=event, status=status, at=at, was_done=True)
            status, outcome = effect(event)
            self._connection.execute(
                self._composed("mark"),
                {"event_id": event.id, "status": status, "outcome": outcome, "payload": json.dumps(event.payload)},
            )
        return Acted(event=event, status=status, outcome=outcome)

    def fail(self, event_id: str, error: str, *, again: bool) -> None:
        """Note why acting on an event failed; its effect was rolled back."""
        text = error.replace("\0", "").encode("utf-8", "replace").decode()[:ERROR_LENGTH_MAX]
        parameters = {"event_id": event_id, "error": text, "again": again}
        with transaction(self._connection):
            self._connection.execute(self._composed("fail"), parameters)

    def take_up(self, types: Collection[str], since: datetime) -> int:
        """Let events wait anew that were set aside when nothing handled their types; return how many."""
        with transaction(self._connection):
            return self._connection.execute(self._composed("take_up"), {"types": list(types), "since": since}).rowcount

    def count_failed(self, *, livemode: bool, since: datetime) -> tuple[int, list[str]]:
        """Return how many events created since then failed, and a few of them."""
        (row,) = self._fetch(self._composed("count_failed"), {"livemode": livemode, "since": since})
        return row["count"], row["sample_ids"] or []

    def cursors(self, account: str, *, livemode: bool) -> dict[str, datetime]:
        """Return up to when Stripe's lists were read, by type of event."""
        rows = self._fetch(sql.SQL(query("stripe_events", "cursors")), {"account": account, "livemode": livemode})
        return {row["type"]: row["read_until"] for row in rows}

    def advance(self, types: Collection[str], read_until: datetime, account: str, *, livemode: bool) -> None:
        """Note up to when Stripe's lists were read."""
        parameters = {"types": list(types), "read_until": read_until, "account": account, "livemode": livemode}
        with transaction(self._connection):
            self._connection.execute(query("stripe_events", "advance"), parameters)

    def _locked(self, event_id: str) -> tuple[str, datetime | None]:
        row = self._connection.execute(self._composed("lock"), {"event_id": event_id}).fetchone()
        return (row[0], row[1]) if row else ("received", None)

    def _fetch(self, text: sql.SQL | sql.Composed, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            with transaction(self._connection, read_only=True), self._connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(text, parameters).fetchall()
        except (psycopg.DataError, ValueError, RecursionError) as error:
            raise InputError(f"an event as stored cannot be read: {error}", hint="delete it from its table") from error

    def _composed(self, name: str, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(query("stripe_events", name)).format(events=self._table, **parts)


def event_store(connection: psycopg.Connection, settings: Settings) -> PostgresStripeEvents:
    """Return the table that Stripe's events are kept in: ours, or the configured one."""
    return PostgresStripeEvents(connection, settings.webhooks.events_parts)


def _columns(events: Iterable[StripeEvent]) -> dict[str, Any]:
    """Return the events as one array per column, for `unnest`."""
    kept = list(events)
    return {
        "ids": [event.id for event in kept],
        "types": [event.type for event in kept],
        "api_versions": [event.api_version for event in kept],
        "livemodes": [event.livemode for event in kept],
        "accounts": [event.account for event in kept],
        "createds": [event.created for event in kept],
        "payloads": [json.dumps(event.payload) for event in kept],
    }
