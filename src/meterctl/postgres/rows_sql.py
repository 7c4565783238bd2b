"""The configuration's names become SQL here: what a page of usage rows is, under which identifier each is billed."""

from typing import LiteralString

from psycopg import sql

from meterctl.core.identifier import Column
from meterctl.ports import PageKey, RowWindow
from meterctl.postgres.catalog import TableInfo
from meterctl.postgres.fragments import at_zone, event_identifier, payload_of_columns, period_end, quoted, raw
from meterctl.postgres.payers_sql import PayersSql
from meterctl.postgres.queries import query
from meterctl.settings.meters import RowsMeter

IN_WINDOW: LiteralString = (
    "u.{occurred_at}{zone} BETWEEN %(since)s AND %(until)s"
    " AND (u.{occurred_at}{zone} >= %(fresh_from)s OR u.{occurred_at}{zone} < %(expired_before)s)"
)

NEAR_WINDOW: LiteralString = (
    "u.{occurred_at} BETWEEN (%(since)s{zone} - interval '1 day') AND (%(until)s{zone} + interval '1 day')"
)
"""What an index can find where local times stand in the column: they are not in the order of their instants, but no
zone ever set its clocks by more than a day. What is exact goes behind it, in a CASE: of expressions the planner takes
BETWEEN to leave next to no row, and would read and sort all that is unreported for every page; of CASE, half.
"""


class RowsSql:
    """The statements of one meter over its table. Whatever comes from the configuration is quoted, but for `where`."""

    def __init__(self, meter: RowsMeter, payers: PayersSql, table: TableInfo) -> None:
        self._meter = meter
        self._payers = payers
        self._table = table
        self._zone = at_zone(table, meter.occurred_at, meter.time_zone)
        self._stamp_zone = at_zone(table, meter.reported_at, meter.time_zone)

    @property
    def id_type(self) -> LiteralString:
        """The id column's type, as PostgreSQL itself writes it: safe to stand in SQL."""
        return self._table.columns[self._meter.id].type

    def compose(self, text: LiteralString, **parts: sql.Composable) -> sql.Composed:
        """Return a statement with the table's and its columns' names, and further parts, put in."""
        meter = self._meter
        return sql.SQL(text).format(
            table=quoted(*meter.table_parts),
            id=quoted(meter.id),
            left_behind=sql.SQL(query("rows", "left_behind")),
            occurred_at=quoted(meter.occurred_at),
            reported_at=quoted(meter.reported_at),
            zone=raw(self._zone),
            stamp_zone=raw(self._stamp_zone),
            **parts,
        )

    def classify(self, window: RowWindow, after: PageKey | None) -> sql.Composed:
        """Return the SELECT that says what collecting the next page of rows means."""
        quantity = sql.SQL("u.{}::numeric").format(quoted(self._meter.value)) if self._meter.value else None
        return self.compose(
            query("rows", "classify"),
            quantity=quantity or sql.SQL("1::numeric"),
            identifier=self._identifier(),
            event_identifier=event_identifier("page.identifier_text"),
            period_end=period_end(instant="page.occurred_at", subscription="chosen"),
            payload=payload_of_columns(self._meter.payload),
            payer_columns=self._payers.columns(),
            page_filter=self.page_filter(window, after),
            payers=self._payers.answers(),
            chosen=sql.SQL(query("payers", "chosen")),
        )

    def _identifier(self) -> sql.Composed:
        return sql.SQL(" || ").join(map(self._identifier_part, self._meter.identifier_template))

    def _identifier_part(self, part: str | Column) -> sql.Composable:
        if isinstance(part, Column) and part.name in self._table.columns:
            return sql.SQL("u.{}::text").format(quoted(part.name))
        literal = self._meter.event_name if isinstance(part, Column) else part
        return raw(sql.Literal(literal).as_string(None))

    def page_filter(self, window: RowWindow, after: PageKey | None, *, reported_too: bool = False) -> sql.Composed:
        """Return the condition on `u` for the rows behind the key; rows without a time come after all others."""
        conditions: list[LiteralString] = [] if reported_too else ["u.{reported_at} IS NULL"]
        if after is not None and after.occurred_at is None:
            conditions += ["u.{occurred_at} IS NULL"]
            conditions += ["u.{id} > %(after_id)s::{id_type}"] if after.row_id is not None else []
        else:
            conditions += [NEAR_WINDOW, f"CASE WHEN {IN_WINDOW} THEN true END"] if self._zone else [IN_WINDOW]
            conditions += (
                ["(u.{occurred_at}, u.{id}) > (%(after_occurred_at)s, %(after_id)s::{id_type})"] if after else []
            )
        conditions += ["u.{id}::text = ANY (%(row_ids)s)"] if window.row_ids else []
        conditions += ["(\n{own}\n)"] if self._meter.where else []
        own = raw(self._meter.where or "")
        return self.compose(" AND ".join(conditions), id_type=sql.SQL(self.id_type), own=own)
