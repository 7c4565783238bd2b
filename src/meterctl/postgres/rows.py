"""Usage rows of one meter: each page of rows becomes ledger events. Its statements are made in `rows_sql`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql

from meterctl.core.model import PAST_LIMIT
from meterctl.core.scope import MICROSECOND
from meterctl.core.value import LOCAL_PROBLEMS
from meterctl.errors import ConfigurationError
from meterctl.ports import Backlog, KindCount, Page, PageKey, RowWindow, SpanCounts
from meterctl.postgres.catalog import TableInfo, table_info
from meterctl.postgres.connect import transaction
from meterctl.postgres.payers_sql import PayersSql
from meterctl.postgres.plans import Plan, plan_of
from meterctl.postgres.queries import query
from meterctl.postgres.rows_sql import RowsSql
from meterctl.postgres.scope_sql import in_scope, scope_parameters
from meterctl.postgres.usage_queries import (
    LedgerOwner,
    count_too_old,
    fetch_usage,
    kind_count,
    meter_parameters,
)
from meterctl.settings.meters import RowsMeter
from meterctl.settings.model import LookupSettings


class PostgresRows:
    """`UsageSource` and the stamping of rows. `key` is the meter's key in the configuration.

    `event_names` are those of all configured meters: an open event of any other keeps its row from being billed anew.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        key: str,
        meter: RowsMeter,
        lookups: Mapping[str, LookupSettings],
        owner: LedgerOwner,
        *,
        event_names: Sequence[str] = (),
    ) -> None:
        self._event_names = list(event_names)
        self._connection = connection
        self._key = key
        self._meter = meter
        self._owner = owner
        with transaction(connection, read_only=True):
            found = table_info(connection, meter.table_parts)
            payers = PayersSql.of(connection, meter.payers, lookups)
        if found is None:
            raise ConfigurationError(f"meter {key}: there is no table {meter.table}", hint="run `meterctl db check`")
        self._table: TableInfo = found
        self._sql = RowsSql(meter, payers, found)

    @property
    def table_name(self) -> str:
        """Where the usage is, for a person."""
        return self._meter.table

    def collect(
        self, window: RowWindow, after: PageKey | None, *, batch_size: int, now: datetime, room: int | None = None
    ) -> Page:
        """Turn the next page of rows into ledger events, at most `room` of them to be sent, in one transaction."""
        text = self._sql.compose(query("rows", "collect"), classify=self._sql.classify(window, after))
        parameters = self._parameters(window, after) | {
            "batch_size": batch_size,
            "room": room,
            "now": now,
        }
        with transaction(self._connection):
            rows = self._fetch(text, parameters)
        first = rows[0]
        return Page(
            next_key=self._next_key(window, first, after, batch_size),
            unstamped_row_ids=tuple(first["unstamped_ids"] or ()),
            kinds=tuple(kind_count(row) for row in rows if row["outcome"] is not None),
        )

    def _next_key(
        self, window: RowWindow, page: Mapping[str, Any], after: PageKey | None, batch_size: int
    ) -> PageKey | None:
        """Dated rows come first, then those without a date, where the column allows them."""
        if page["row_count"] == batch_size or page["is_cut"]:
            return PageKey(occurred_at=page["last_key"], row_id=page["last_id"])
        dated = after is None or after.occurred_at is not None
        return PageKey(occurred_at=None, row_id=None) if dated and self._has_undated(window) else None

    def preview(
        self, window: RowWindow, *, doubt_horizon: datetime, late_before: datetime | None = None
    ) -> list[KindCount]:
        """Return what collecting and delivering everything would do, in a transaction PostgreSQL holds READ ONLY."""
        keys = [None, PageKey(occurred_at=None, row_id=None)] if self._has_undated(window) else [None]
        horizons = {"doubt_horizon": doubt_horizon, "late_before": late_before}
        kinds = [kind for key in keys for kind in self._preview(window, key, horizons)]
        return [*kinds, *self._before_since(window)]

    def _before_since(self, window: RowWindow) -> list[KindCount]:
        """Return the unreported rows that are not this meter's for lying before its `since`: they are only counted."""
        since = self._meter.since
        if since is None or since <= window.since:
            return []
        text = self._sql.compose(query("rows", "count_uncollected"), page_filter=self._sql.page_filter(window, None))
        bounds = {"since": window.since, "until": min(window.until, since - MICROSECOND)}
        with transaction(self._connection, read_only=True):
            row = self._fetch(text, self._parameters(window, None) | bounds)[0]
        found = KindCount(outcome="before_since", code=None, event_count=row["count"], units=Decimal(0))
        return [found] if row["count"] else []

    def _has_undated(self, window: RowWindow) -> bool:
        return window.span is None and self._table.columns[self._meter.occurred_at].nullable

    def _preview(
        self, window: RowWindow, after: PageKey | None, horizons: dict[str, datetime | None]
    ) -> list[KindCount]:
        # The ledger's own events are counted with the dated rows.
        ledger_filter = in_scope(window.scope) if after is None else sql.SQL("false")
        text = self._sql.compose(
            query("rows", "preview"), classify=self._sql.classify(window, after), ledger_filter=ledger_filter
        )
        parameters = self._parameters(window, after) | {"batch_size": None} | horizons
        with transaction(self._connection, read_only=True):
            return [kind_count(row) for row in self._fetch(text, parameters)]

    def span_counts(self, window: RowWindow) -> SpanCounts:
        """Return how many rows of the window's span are reported, by whomever, and how many are too old."""
        of_any_age = replace(window, expired_before=window.fresh_from)
        in_span = self._sql.page_filter(of_any_age, None, reported_too=True)
        with transaction(self._connection, read_only=True):
            text = self._sql.compose(query("rows", "span_counts"), page_filter=in_span)
            row = self._fetch(text, self._parameters(of_any_age, None) | {"since": window.since})[0]
        return SpanCounts(reported=row["reported"], too_old=row["expired"] + count_too_old(self, window))

    def count_uncollected(self, window: RowWindow, after: PageKey | None) -> int:
        """Return how many unreported rows behind the key have no event."""
        return self.backlog(window, after).row_count

    def backlog(self, window: RowWindow, after: PageKey | None = None) -> Backlog:
        """Return how many unreported rows behind the key have no event, and the oldest one's instant."""
        text = self._sql.compose(query("rows", "count_uncollected"), page_filter=self._sql.page_filter(window, after))
        with transaction(self._connection, read_only=True):
            row = self._fetch(text, self._parameters(window, after))[0]
        return Backlog(row_count=row["count"], oldest=row["oldest"])

    def not_to_report(self, window: RowWindow) -> list[str]:
        """Return which of the rows asked for no run would look at."""
        text = self._sql.compose(query("rows", "not_to_report"), page_filter=self._sql.page_filter(window, None))
        with transaction(self._connection, read_only=True):
            return [row["id"] for row in self._fetch(text, self._parameters(window, None))]

    def reread(self, events: Sequence[Mapping[str, Any]], now: datetime) -> dict[int, dict[str, Any]]:
        """Return by event id the events' unreported rows as collecting would see them now, whatever event they have.

        They are looked for at the instants the events know, where an index leads, and only those not found there in the
        whole table: a row that was given its instant afterwards.
        """
        row_ids = {event["source_row_id"] for event in events if event["source_row_id"] is not None}
        instants = [event["occurred_at"] for event in events if event["occurred_at"] is not None]
        spans = [(min(instants), max(instants))] if instants else []
        rows: dict[str, dict[str, Any]] = {}
        for since, until in (*spans, (datetime(1, 1, 1, tzinfo=UTC), now)):
            missing = tuple(row_ids - set(rows))
            if missing:
                rows |= {row["row_id"]: row for row in self._classified(missing, since, until, now - PAST_LIMIT)}
        return {event["id"]: rows[event["source_row_id"]] for event in events if event["source_row_id"] in rows}

    def _classified(
        self, row_ids: tuple[str, ...], since: datetime, until: datetime, horizon: datetime
    ) -> list[dict[str, Any]]:
        window = RowWindow(since=since, until=until, fresh_from=horizon, expired_before=horizon, row_ids=row_ids)
        parameters = self._parameters(window, None) | {"batch_size": len(row_ids)}
        return self._fetch(self._sql.classify(window, None), parameters)

    def explain(self, window: RowWindow, *, batch_size: int = 0) -> Plan:
        """Return how PostgreSQL would classify a page, without reading a row, within the caller's transaction."""
        parameters = self._parameters(window, None) | {"batch_size": batch_size}
        return plan_of(self._connection, self._sql.classify(window, None), parameters)

    def uncollected(self, window: RowWindow) -> list[KindCount]:
        """Return what the rows of the window are that have no event, those of free users aside."""
        text = self._sql.compose(query("rows", "uncollected"), classify=self._sql.classify(window, None))
        with transaction(self._connection, read_only=True):
            rows = self._fetch(text, self._parameters(window, None) | {"batch_size": None})
        return [kind_count(row) for row in rows]

    def stamp(self, row_ids: Sequence[str], *, now: datetime) -> int:
        """Stamp the rows that are neither stamped nor locked, within the caller's transaction; return how many."""
        cursor = self._connection.execute(
            self._sql.compose(query("rows", "stamp"), id_type=sql.SQL(self._sql.id_type)),
            {"row_ids": list(row_ids), "now": now, "meter": self._key, "event_name": self._meter.event_name},
        )
        return cursor.rowcount

    def unstamp(self, event_ids: Sequence[int]) -> int:
        """Take off the stamps that accepted events brought, within the caller's transaction; return how many."""
        text = self._sql.compose(query("rows", "unstamp"), id_type=sql.SQL(self._sql.id_type))
        return self._connection.execute(text, {"event_ids": list(event_ids)}).rowcount

    def _fetch(self, text: sql.Composed, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return fetch_usage(
            self._connection, text, parameters, key=self._key, table=self._meter.table, where=self._meter.where
        )

    def _parameters(self, window: RowWindow, after: PageKey | None) -> dict[str, Any]:
        return (
            meter_parameters(self._key, self._meter, self._owner)
            | scope_parameters(window.scope)
            | {
                "event_names": self._event_names,
                "table_name": self._meter.table,
                "since": max(window.since, self._meter.since or window.since),
                "until": window.until,
                "fresh_from": window.fresh_from,
                "expired_before": window.expired_before,
                "after_occurred_at": after.occurred_at if after else None,
                "after_id": after.row_id if after else None,
                "problem_codes": list(LOCAL_PROBLEMS),
                "problem_sentences": list(LOCAL_PROBLEMS.values()),
            }
        )
