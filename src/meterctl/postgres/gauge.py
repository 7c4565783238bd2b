"""Levels of one meter: what each customer has now becomes one ledger event a step."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from meterctl.core.level import LevelRequest
from meterctl.errors import ConfigurationError, InputError, UsageError
from meterctl.ports import KindCount, Page, PageKey, RowWindow, SpanCounts
from meterctl.postgres.catalog import TableInfo, table_info
from meterctl.postgres.connect import transaction
from meterctl.postgres.fragments import event_identifier, period_end, quoted, raw
from meterctl.postgres.payers_sql import PayersSql
from meterctl.postgres.queries import query
from meterctl.postgres.rereading import reread_windows
from meterctl.postgres.scope_sql import in_scope, scope_parameters
from meterctl.postgres.usage_queries import (
    LedgerOwner,
    events_of_span,
    fetch_usage,
    kind_count,
    meter_parameters,
)
from meterctl.settings.meters import GaugeMeter
from meterctl.settings.model import LookupSettings


class PostgresGauge:
    """`UsageSource` of a gauge. `key` is the meter's key in the configuration."""

    def __init__(
        self,
        connection: psycopg.Connection,
        key: str,
        meter: GaugeMeter,
        lookups: Mapping[str, LookupSettings],
        owner: LedgerOwner,
        request: LevelRequest,
    ) -> None:
        self._connection = connection
        self._key, self._meter, self._owner, self._request = key, meter, owner, request
        with transaction(connection, read_only=True):
            found = table_info(connection, meter.table_parts)
            self._payers = PayersSql.of(connection, meter.payers, lookups)
        if found is None:
            raise ConfigurationError(f"meter {key}: there is no table {meter.table}", hint="run `meterctl db check`")
        self._table: TableInfo = found

    def collect(
        self, window: RowWindow, after: PageKey | None, *, batch_size: int, now: datetime, room: int | None = None
    ) -> Page:
        """Turn the levels into ledger events, in one transaction and one page; a limit applies to their delivery.

        Raises InputError where a level that was asked for expressly cannot be reported; then nothing is written.
        """
        del after, batch_size, room
        if window.row_ids:
            return Page(next_key=None, unstamped_row_ids=(), kinds=())
        with transaction(self._connection):
            self._require_sense(window)
            kinds = self._counts(query("gauge", "collect"), self._parameters(window) | {"now": now})
        return Page(next_key=None, unstamped_row_ids=(), kinds=tuple(kinds))

    def preview(
        self, window: RowWindow, *, doubt_horizon: datetime, late_before: datetime | None = None
    ) -> list[KindCount]:
        """Return what reporting now would do, in a transaction PostgreSQL holds READ ONLY."""
        del doubt_horizon  # a level in doubt is sent again, however old
        if window.row_ids:
            return []
        with transaction(self._connection, read_only=True):
            self._require_sense(window)
            parameters = self._parameters(window) | scope_parameters(window.scope) | {"late_before": late_before}
            return self._counts(query("gauge", "preview"), parameters, only=in_scope(window.scope))

    def span_counts(self, window: RowWindow) -> SpanCounts:
        """Return how many levels of the window's span are reported, and how many were not in time."""
        return events_of_span(self._connection, self._meter.event_name, window.scope)

    def count_uncollected(self, window: RowWindow, after: PageKey | None) -> int:
        """Return 0: a level is not left over."""
        del window, after
        return 0

    def backlog(self, window: RowWindow) -> None:
        """Return None: a level is what it is now."""
        del window

    def not_to_report(self, window: RowWindow) -> list[str]:
        """Return all rows asked for: a level has none."""
        return list(window.row_ids)

    def reread(self, events: Sequence[Mapping[str, Any]], now: datetime) -> dict[int, dict[str, Any]]:
        """Return by event id what each rejected level would be now."""
        return reread_windows(self._connection, self._meter, self._payers, events, now)

    def explain(self, window: RowWindow) -> None:
        """Have PostgreSQL plan the statement without reading a row, within the caller's transaction."""
        self._connection.execute(sql.SQL("EXPLAIN ") + self._classify(), self._parameters(window))

    def _counts(self, text: LiteralString, parameters: Mapping[str, Any], **parts: sql.Composable) -> list[KindCount]:
        composed = sql.SQL(text).format(classify=self._classify(), **parts)
        return [kind_count(row) for row in self._fetch(composed, parameters)]

    def _require_sense(self, window: RowWindow) -> None:
        """An instant or a level that a person named is reported as it was named, or not at all."""
        if self._request.at is None and self._request.subject is None:
            return
        at = self._request.at or window.until
        if at > window.until or self._meter.step_start(at) < window.fresh_from:
            raise UsageError(
                f"--at {at:%F %T}Z is not within the last 35 days", hint="Stripe takes no other; nothing was written"
            )
        if self._request.gap is not None:
            return
        for row in self._fetch(self._classify(), self._parameters(window)):
            who = row["customer"] or row["subject"]
            if row["outcome"] == "newer":
                raise InputError(
                    f"meter {self._key}: {who} has a level of a later instant in the same period, which bills",
                    hint="nothing was written; --force sends this one all the same",
                )
            if row["outcome"] == "known" and self._request.subject is not None and row["known_value"] != row["value"]:
                raise InputError(
                    f"meter {self._key}: {who} was reported with {row['known_value']:f} for this step already",
                    hint="nothing was written; report the new value in the next step",
                )

    def _classify(self) -> sql.Composed:
        names = [quoted(f"payer_{n}") for n in range(len(self._meter.payers))]
        return sql.SQL(query("gauge", "classify")).format(
            table=quoted(*self._meter.table_parts),
            own=raw(self._meter.where or "true"),
            payer_columns=self._payers.columns(),
            payer_names=sql.SQL(", ").join(names),
            last_payer=names[-1],
            not_explicit=self._not_explicit(names),
            explicit=self._explicit(),
            payers=self._payers.answers(),
            chosen=sql.SQL(query("payers", "chosen")),
            customer_problem=sql.SQL(query("event", "customer_problem")),
            event_identifier=event_identifier("text"),
            period_end=period_end(instant="%(at)s", subscription="due"),
            customers=self._payers.of_customers(),
        )

    def _not_explicit(self, names: list[sql.SQL]) -> sql.Composable:
        if self._request.subject is None:
            return sql.SQL("true")
        pairs = zip(names, self._subjects(), strict=True)
        return sql.SQL(" AND ").join(sql.SQL("{} IS DISTINCT FROM {}").format(name, subject) for name, subject in pairs)

    def _explicit(self) -> sql.Composable:
        if self._request.subject is None:
            return sql.SQL("")
        return sql.SQL(query("gauge", "explicit")).format(subjects=sql.SQL(", ").join(self._subjects()))

    def _subjects(self) -> list[sql.Composed]:
        """Return the subject asked for as each payer's column holds it: a uuid can be written in several ways."""
        types = [self._table.columns[payer.column].type for payer in self._meter.payers]
        # A type as the catalogs print it is quoted where it must be: safe to stand in SQL.
        return [sql.SQL("%(subject)s::text::{}").format(raw(type_)) for type_ in types]

    def _fetch(self, text: sql.Composed, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        meter = self._meter
        return fetch_usage(self._connection, text, parameters, key=self._key, table=meter.table, where=meter.where)

    def _parameters(self, window: RowWindow) -> dict[str, Any]:
        request = self._request
        at = request.at or window.until
        return meter_parameters(self._key, self._meter, self._owner) | {
            "at": at,
            "step_start": self._meter.step_start(at),
            "subject": request.subject,
            "level": request.level,
            "is_explicit": request.subject is not None,
            "insisted": request.insisted,
            "accept_zeros": request.accept_zeros,
            "gap_since": request.gap.since if request.gap else None,
            "gap_until": request.gap.until if request.gap else None,
        }
