"""The configuration's names become SQL here: what a page of usage rows is, who pays, under which identifier."""

from collections.abc import Mapping
from typing import LiteralString

from psycopg import sql

from meterctl.core.identifier import Column
from meterctl.ports import PageKey, RowWindow
from meterctl.postgres.catalog import TableInfo
from meterctl.postgres.queries import query
from meterctl.settings.meters import RowsMeter
from meterctl.settings.model import LookupSettings

LIVE_STATUSES = ("active", "trialing", "past_due")
"""Statuses of a subscription that pays, where its end is not mapped to a column."""

PERIOD_BOUND: LiteralString = "CASE WHEN s.{0} BETWEEN '2000-01-01' AND '9000-01-01' THEN s.{0} END"
"""A period's end, or NULL (unknown) where the application wrote infinity or a year no calendar of ours holds."""


class RowsSql:
    """The statements of one meter over its table. Whatever comes from the configuration is quoted, but for `where`."""

    def __init__(self, meter: RowsMeter, lookups: Mapping[str, LookupSettings], table: TableInfo) -> None:
        self._meter = meter
        self._lookups = lookups
        self._table = table

    @property
    def id_type(self) -> LiteralString:
        """The id column's type, as PostgreSQL itself writes it: safe to stand in SQL."""
        return self._table.columns[self._meter.id].type

    def compose(self, text: LiteralString, **parts: sql.Composable) -> sql.Composed:
        """Return a statement with the table's and its columns' names, and further parts, put in."""
        meter = self._meter
        return sql.SQL(text).format(
            table=_name(*meter.table_parts),
            id=_name(meter.id),
            left_behind=sql.SQL(query("rows", "left_behind")),
            occurred_at=_name(meter.occurred_at),
            reported_at=_name(meter.reported_at),
            **parts,
        )

    def classify(self, window: RowWindow, after: PageKey | None) -> sql.Composed:
        """Return the SELECT that says what collecting the next page of rows means."""
        quantity = sql.SQL("u.{}::numeric").format(_name(self._meter.value)) if self._meter.value else None
        return self.compose(
            query("rows", "classify"),
            quantity=quantity or sql.SQL("1::numeric"),
            identifier=self._identifier(),
            payer_columns=sql.SQL(", ").join(
                sql.SQL("u.{} AS {}").format(_name(payer.column), _name(f"payer_{n}"))
                for n, payer in enumerate(self._meter.payers)
            ),
            page_filter=self.page_filter(window, after),
            payers=sql.SQL("\n    UNION ALL\n").join(self._payer(n) for n in range(len(self._meter.payers))),
        )

    def _identifier(self) -> sql.Composed:
        return sql.SQL(" || ").join(map(self._identifier_part, self._meter.identifier_template))

    def _identifier_part(self, part: str | Column) -> sql.Composable:
        if isinstance(part, Column) and part.name in self._table.columns:
            return sql.SQL("u.{}::text").format(_name(part.name))
        literal = self._meter.event_name if isinstance(part, Column) else part
        return _raw(sql.Literal(literal).as_string(None))

    def page_filter(self, window: RowWindow, after: PageKey | None) -> sql.Composed:
        """Return the condition on `u` for the rows behind the key; rows without a time come after all others."""
        conditions: list[LiteralString] = ["u.{reported_at} IS NULL"]
        if after is not None and after.occurred_at is None:
            conditions += ["u.{occurred_at} IS NULL"]
            conditions += ["u.{id} > %(after_id)s::{id_type}"] if after.row_id is not None else []
        else:
            conditions += [
                "u.{occurred_at} BETWEEN %(since)s AND %(until)s",
                "(u.{occurred_at} >= %(fresh_from)s OR u.{occurred_at} < %(expired_before)s)",
            ]
            conditions += (
                ["(u.{occurred_at}, u.{id}) > (%(after_occurred_at)s, %(after_id)s::{id_type})"] if after else []
            )
        conditions += ["u.{id}::text = ANY (%(row_ids)s)"] if window.row_ids else []
        conditions += ["(\n{own}\n)"] if self._meter.where else []
        own = _raw(self._meter.where or "")
        return self.compose(" AND ".join(conditions), id_type=sql.SQL(self.id_type), own=own)

    def _payer(self, n: int) -> sql.Composed:
        lookup = self._lookups[self._meter.payers[n].lookup]
        return sql.SQL(query("rows", "payer")).format(
            lookup=sql.Literal(n),
            payer=_name(f"payer_{n}"),
            table=_name(*lookup.table.split(".")),
            subject=_name(lookup.subject),
            customer=_name(lookup.customer),
            started=_column(lookup.started_at, "coalesce(s.{}, '-infinity'::timestamptz)", "'-infinity'::timestamptz"),
            tiebreak=_column(lookup.id, "s.{}", "NULL::int"),
            period_start=_column(lookup.period_start, PERIOD_BOUND, "NULL::timestamptz"),
            period_end=_column(lookup.period_end, PERIOD_BOUND, "NULL::timestamptz"),
            in_force=_in_force(lookup),
        )


def paying(lookup: LookupSettings) -> sql.Composed:
    """Return the SELECT of a lookup's customers whose subscription is in force at %(now)s, and their periods' ends."""
    return sql.SQL(query("doctor", "paying")).format(
        table=_name(*lookup.table.split(".")),
        subject=_name(lookup.subject),
        customer=_name(lookup.customer),
        period_end=_column(lookup.period_end, PERIOD_BOUND, "NULL::timestamptz"),
        in_force=_in_force(lookup),
    )


def _name(*parts: str) -> sql.SQL:
    """Return a table's or column's name quoted."""
    return _raw(sql.Identifier(*parts).as_string(None))


def _raw(text: str) -> sql.SQL:
    """Return SQL of the operator's own as it stands; psycopg would read a single `%` as a parameter."""
    return sql.SQL(text.replace("%", "%%"))


def _column(name: str | None, template: LiteralString, otherwise: LiteralString) -> sql.Composed | sql.SQL:
    return sql.SQL(template).format(_name(name)) if name else sql.SQL(otherwise)


def _in_force(lookup: LookupSettings) -> sql.Composed:
    """Return the condition under which a subscription pays for usage at `page.occurred_at`."""
    conditions: list[sql.Composable] = [sql.SQL("true")]
    if lookup.started_at:
        started = _name(lookup.started_at)
        conditions.append(sql.SQL("(s.{0} <= page.occurred_at) IS NOT FALSE").format(started))
    if lookup.ended_at:
        conditions.append(sql.SQL("(page.occurred_at < s.{0}) IS NOT FALSE").format(_name(lookup.ended_at)))
    elif lookup.status:
        statuses = sql.SQL(", ").join(map(sql.Literal, LIVE_STATUSES))
        conditions.append(sql.SQL("s.{}::text IN ({})").format(_name(lookup.status), statuses))
    return sql.SQL(" AND ").join(conditions)
