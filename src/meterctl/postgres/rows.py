"""Usage rows of one meter: each page of rows becomes ledger events. Its statements are made in `rows_sql`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.identifier import HASHED_PREFIX_LENGTH, IDENTIFIER_LENGTH_MAX
from meterctl.core.value import DIGITS_MAX, LOCAL_PROBLEMS, PLACES_MAX
from meterctl.errors import ConfigurationError
from meterctl.ports import KindCount, Page, PageKey, RowWindow
from meterctl.postgres.catalog import TableInfo, table_info
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query
from meterctl.postgres.rows_sql import RowsSql
from meterctl.settings.meters import RowsMeter
from meterctl.settings.model import LookupSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerOwner:
    """Whose ledger it is: the Stripe account, and its mode."""

    account: str
    livemode: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Unreported rows without an event, those of free users among them."""

    row_count: int
    oldest: datetime | None


class PostgresRows:
    """`RowSource` and the stamping of rows. `key` is the meter's key in the configuration.

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
        if found is None:
            raise ConfigurationError(f"meter {key}: there is no table {meter.table}", hint="run `meterctl db check`")
        self._table: TableInfo = found
        self._sql = RowsSql(meter, lookups, found)

    def collect(
        self, window: RowWindow, after: PageKey | None, *, batch_size: int, now: datetime, room: int | None = None
    ) -> Page:
        """Turn the next page of rows into ledger events, at most `room` of them to be sent, in one transaction."""
        text = self._sql.compose(query("rows", "collect"), classify=self._sql.classify(window, after))
        parameters = self._parameters(window, after) | {
            "batch_size": batch_size,
            "room": room,
            "now": now,
            "account": self._owner.account,
            "livemode": self._owner.livemode,
        }
        with transaction(self._connection):
            rows = self._fetch(text, parameters)
        first = rows[0]
        return Page(
            next_key=self._next_key(first, after, batch_size),
            unstamped_row_ids=tuple(first["unstamped_ids"] or ()),
            kinds=tuple(_kind_count(row) for row in rows if row["outcome"] is not None),
        )

    def _next_key(self, page: Mapping[str, Any], after: PageKey | None, batch_size: int) -> PageKey | None:
        """Dated rows come first, then those without a date, where the column allows them."""
        if page["row_count"] == batch_size or page["is_cut"]:
            return PageKey(occurred_at=page["last_occurred_at"], row_id=page["last_id"])
        dated = after is None or after.occurred_at is not None
        if dated and self._table.columns[self._meter.occurred_at].nullable:
            return PageKey(occurred_at=None, row_id=None)
        return None

    def preview(self, window: RowWindow, *, doubt_horizon: datetime) -> list[KindCount]:
        """Return what collecting and delivering everything would do, in a transaction PostgreSQL holds READ ONLY."""
        keys = [None, PageKey(occurred_at=None, row_id=None)] if self._has_undated() else [None]
        return [kind for key in keys for kind in self._preview(window, key, doubt_horizon)]

    def _has_undated(self) -> bool:
        return self._table.columns[self._meter.occurred_at].nullable

    def _preview(self, window: RowWindow, after: PageKey | None, doubt_horizon: datetime) -> list[KindCount]:
        ledger_filter = sql.SQL("true")
        if after is not None:
            ledger_filter = sql.SQL("false")  # the ledger's own events were counted with the dated rows
        elif window.row_ids:
            ledger_filter = sql.SQL("source_row_id = ANY (%(row_ids)s)")
        text = self._sql.compose(
            query("rows", "preview"), classify=self._sql.classify(window, after), ledger_filter=ledger_filter
        )
        parameters = self._parameters(window, after) | {"batch_size": None, "doubt_horizon": doubt_horizon}
        with transaction(self._connection, read_only=True):
            return [_kind_count(row) for row in self._fetch(text, parameters)]

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

    def classified(self, row_ids: Sequence[str], window: RowWindow) -> list[dict[str, Any]]:
        """Return the rows as collecting them would see them now, whatever event they have. For `ledger retry`."""
        text = self._sql.classify(window, None)
        return self._fetch(text, self._parameters(window, None) | {"batch_size": len(row_ids)})

    def explain(self, window: RowWindow) -> None:
        """Have PostgreSQL plan the classification without reading a row, within the caller's transaction."""
        parameters = self._parameters(window, None) | {"batch_size": 0}
        self._connection.execute(sql.SQL("EXPLAIN ") + self._sql.classify(window, None), parameters)

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
        try:
            with self._connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(text, parameters).fetchall()
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            if isinstance(error, pg.InsufficientPrivilege):
                raise
            where = f" (its `where` is: {self._meter.where})" if self._meter.where else ""
            raise ConfigurationError(
                f"meter {self._key}: PostgreSQL cannot read the rows of {self._meter.table}{where}:"
                f" {str(error).splitlines()[0]}",
                hint="correct the meter in the configuration, then run `meterctl db check`",
            ) from error

    def _parameters(self, window: RowWindow, after: PageKey | None) -> dict[str, Any]:
        return {
            "meter": self._key,
            "event_name": self._meter.event_name,
            "event_names": self._event_names,
            "table_name": self._meter.table,
            "since": window.since,
            "until": window.until,
            "fresh_from": window.fresh_from,
            "expired_before": window.expired_before,
            "row_ids": list(window.row_ids),
            "after_occurred_at": after.occurred_at if after else None,
            "after_id": after.row_id if after else None,
            "identifier_length_max": IDENTIFIER_LENGTH_MAX,
            "hashed_prefix_length": HASHED_PREFIX_LENGTH,
            "whole": self._meter.values == "whole",
            "digits_max": DIGITS_MAX,
            "places_max": PLACES_MAX,
            "customer_payload_key": self._meter.customer_payload_key,
            "value_payload_key": self._meter.value_payload_key,
            "problem_codes": list(LOCAL_PROBLEMS),
            "problem_sentences": list(LOCAL_PROBLEMS.values()),
        }


def _kind_count(row: Mapping[str, Any]) -> KindCount:
    return KindCount(
        outcome=row["outcome"],
        code=row["code"],
        event_count=row["event_count"],
        units=row["units"] if row["units"] is not None else Decimal(0),
        sample_ids=tuple(row["sample_ids"] or ()),
        customer_count=row.get("customer_count", 0),
        oldest=row.get("oldest"),
    )
