"""Volumes of one meter: what applications counted becomes one ledger event for each subject and hour."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.model import PAST_LIMIT
from meterctl.ports import Backlog, KindCount, Page, PageKey, RowWindow, SpanCounts, Undeliverable
from meterctl.postgres.connect import transaction
from meterctl.postgres.counting import uncounted
from meterctl.postgres.fragments import event_identifier, period_end
from meterctl.postgres.payers_sql import PayersSql
from meterctl.postgres.queries import query
from meterctl.postgres.rereading import reread_windows
from meterctl.postgres.scope_sql import in_scope, scope_parameters
from meterctl.postgres.usage_queries import (
    LedgerOwner,
    count_too_old,
    events_of_span,
    fetch_usage,
    kind_count,
    meter_parameters,
)
from meterctl.settings.meters import CounterMeter
from meterctl.settings.model import LookupSettings

OUTBOX = "meterctl.usage_outbox"

HOUR = timedelta(hours=1)

ALLOWANCE = timedelta(minutes=5)
"""How long after its end an hour is closed: for transactions that were open then."""

KEYS_LIVE = PAST_LIMIT + timedelta(days=1)
"""How long a dedup_key is known: `record_usage` takes nothing older than 35 days, so no later call can repeat one."""

KEPT_UNBILLABLE = 2 * PAST_LIMIT
"""When usage that nobody pays for leaves the outbox: no run looks at it any more."""

DROPPED_AT_ONCE = 10_000


class PostgresCounter:
    """`UsageSource` of a counter. `key` is the meter's key in the configuration; a page is an hour.

    `open_too`: hours that are not over are collected as well.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        key: str,
        meter: CounterMeter,
        lookups: Mapping[str, LookupSettings],
        owner: LedgerOwner,
        *,
        open_too: bool = False,
    ) -> None:
        self._connection = connection
        self._key, self._meter, self._owner, self._open_too = key, meter, owner, open_too
        with transaction(connection, read_only=True):
            self._payers = PayersSql.of(connection, meter.payers, lookups)

    @property
    def table_name(self) -> str:
        """Where the usage is, for a person."""
        return f"{OUTBOX} for {self._key}"

    def collect(
        self, window: RowWindow, after: PageKey | None, *, batch_size: int, now: datetime, room: int | None = None
    ) -> Page:
        """Turn the next hour's usage into ledger events, at most `room` of them to be sent, in one transaction."""
        del batch_size
        hour = self._next_hour(window, after)
        if hour is None:
            return Page(next_key=None, unstamped_row_ids=(), kinds=self._uncounted(window))
        text = sql.SQL(query("counter", "collect")).format(classify=self._classify(lock="FOR UPDATE SKIP LOCKED"))
        with transaction(self._connection):
            rows = self._fetch(text, self._parameters(window, now, hour, hour + HOUR) | {"room": room})
        kinds = tuple(kind_count(row) for row in rows)
        is_cut = room is not None and sum(kind.event_count for kind in kinds if kind.outcome == "pending") == room
        key = PageKey(occurred_at=hour if is_cut else hour + HOUR, row_id=None)
        return Page(next_key=key, unstamped_row_ids=(), kinds=kinds)

    def preview(
        self, window: RowWindow, *, doubt_horizon: datetime, late_before: datetime | None = None
    ) -> list[KindCount]:
        """Return what collecting and delivering everything would do, in a transaction PostgreSQL holds READ ONLY."""
        if window.row_ids:
            return []
        text = sql.SQL(query("counter", "preview")).format(classify=self._classify(), only=in_scope(window.scope))
        horizons = {"doubt_horizon": doubt_horizon, "late_before": late_before}
        parameters = self._parameters(window, window.now) | scope_parameters(window.scope) | horizons
        with transaction(self._connection, read_only=True):
            kinds = [kind_count(row) for row in self._fetch(text, parameters)]
        return [*kinds, *self._uncounted(window)]

    def _uncounted(self, window: RowWindow) -> tuple[KindCount, ...]:
        """Return where rows of the meter's table are inserted that no trigger counts: that usage is lost."""
        if self._meter.table is None or window.row_ids:
            return ()
        with transaction(self._connection, read_only=True):
            faults = uncounted(self._connection, self._key, self._meter)
        if not faults:
            return ()
        kind = KindCount(
            outcome="uncounted", code="uncounted", event_count=len(faults), units=Decimal(0), sample_ids=tuple(faults)
        )
        return (kind,)

    def span_counts(self, window: RowWindow) -> SpanCounts:
        """Return how many events of the window's span are reported, and how many are, or would be, too old."""
        events = events_of_span(self._connection, self._meter.event_name, window.scope)
        return replace(events, too_old=events.too_old + count_too_old(self, window))

    def count_uncollected(self, window: RowWindow, after: PageKey | None) -> int:
        """Return how many events the hours from the key on would still give."""
        since = after.occurred_at if after else None
        return sum(kind.event_count for kind in self._not_collected(window, since) if kind.outcome == "pending")

    def uncollected(self, window: RowWindow) -> list[KindCount]:
        """Return what the window's usage would become, that of free subjects aside."""
        return self._not_collected(window, None)

    def _not_collected(self, window: RowWindow, since: datetime | None) -> list[KindCount]:
        text = sql.SQL(query("counter", "not_collected")).format(classify=self._classify())
        with transaction(self._connection, read_only=True):
            return [kind_count(row) for row in self._fetch(text, self._parameters(window, window.now, since))]

    def not_to_report(self, window: RowWindow) -> list[str]:
        """Return all rows asked for: counted usage has none."""
        return list(window.row_ids)

    def backlog(self, window: RowWindow) -> Backlog:
        """Return how much uncollected usage there is, and the oldest one's instant."""
        text = sql.SQL(query("counter", "backlog")).format()
        with transaction(self._connection, read_only=True):
            return Backlog(**self._fetch(text, self._parameters(window, window.now))[0])

    def reread(self, events: Sequence[Mapping[str, Any]], now: datetime) -> dict[int, dict[str, Any]]:
        """Return by event id what each rejected window would be now."""
        return reread_windows(self._connection, self._meter, self._payers, events, now)

    def explain(self, window: RowWindow) -> None:
        """Have PostgreSQL plan the statement without reading a row, within the caller's transaction."""
        parameters = self._parameters(window, window.now)
        self._connection.execute(sql.SQL("EXPLAIN ") + self._classify(), parameters)

    def tidy(self, now: datetime) -> int:
        """Drop what is done, or too old for any run, and keys that need not be known any more; return how many rows."""
        instants = {
            "meter": self._key,
            "done_before": now - self._kept,
            "too_old": now - KEPT_UNBILLABLE,
            "known_since": now - KEYS_LIVE,
            "batch_size": DROPPED_AT_ONCE,
        }
        return sum(self._dropped(name, instants) for name in ("drop_done", "drop_keys"))

    @property
    def _kept(self) -> timedelta:
        """How long done usage is kept: in test mode while it can be billed, for `db forget-test` makes it due again."""
        return self._meter.keep_done if self._owner.livemode else max(self._meter.keep_done, PAST_LIMIT)

    def _dropped(self, name: LiteralString, parameters: Mapping[str, Any]) -> int:
        text, total = sql.SQL(query("counter", name)), 0
        while True:
            with transaction(self._connection):
                count = self._connection.execute(text, parameters).rowcount
            total += count
            if count < DROPPED_AT_ONCE:
                return total

    def _next_hour(self, window: RowWindow, after: PageKey | None) -> datetime | None:
        since = max(window.since, after.occurred_at) if after and after.occurred_at else window.since
        if window.row_ids:
            return None
        with transaction(self._connection, read_only=True):
            rows = self._fetch(
                sql.SQL(query("counter", "next_hour")).format(),
                {"meter": self._key, "since": since, "until": window.until}
                | {"fresh_from": window.fresh_from, "expired_before": window.expired_before},
            )
        hour: datetime | None = rows[0]["hour"]
        return hour

    def _classify(self, *, lock: LiteralString = "") -> sql.Composed:
        return sql.SQL(query("counter", "classify")).format(
            lock=sql.SQL(lock),
            payers=self._payers.answers(as_text=True),
            chosen=sql.SQL(query("payers", "chosen")),
            customer_problem=sql.SQL(query("event", "customer_problem")),
            event_identifier=event_identifier("text"),
            period_end=period_end(instant="page.occurred_at", subscription="chosen"),
        )

    def _fetch(self, text: sql.Composed, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return fetch_usage(self._connection, text, parameters, key=self._key, table=OUTBOX)

    def _parameters(
        self, window: RowWindow, now: datetime, hour_from: datetime | None = None, hour_until: datetime | None = None
    ) -> dict[str, Any]:
        """Return what the statements ask for; without hours, all of the window."""
        return meter_parameters(self._key, self._meter, self._owner) | {
            "hour_from": hour_from or window.since,
            "hour_until": hour_until or window.until + HOUR,
            "now": now,
            "since": window.since,
            "until": window.until,
            "fresh_from": window.fresh_from,
            "expired_before": window.expired_before,
            "allowance": ALLOWANCE,
            "open_too": self._open_too,
        }


def unknown_usage(connection: psycopg.Connection, keys: list[str]) -> list[Undeliverable]:
    """Return uncollected usage of meters other than these, by meter."""
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query("counter", "unknown_usage"), {"meters": keys}).fetchall()
    return [
        Undeliverable(event_name=row["event_name"], event_count=row["event_count"], sample_ids=tuple(row["sample_ids"]))
        for row in rows
    ]
