"""Who pays, in SQL: the configuration's lookups asked for every line of a `page`. Names are quoted here."""

from collections.abc import Mapping, Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

from meterctl.postgres.catalog import Parts, TableInfo, find_tables
from meterctl.postgres.fragments import at_zone, quoted, raw
from meterctl.postgres.queries import query
from meterctl.settings.model import LookupSettings, PayerSettings

LIVE_STATUSES = ("active", "trialing", "past_due")
"""Statuses of a subscription that pays, where its end is not mapped to a column."""

_STARTED: LiteralString = "coalesce(s.{0}{zone}, '-infinity'::timestamptz)"

_PERIOD_BOUND: LiteralString = "CASE WHEN s.{0} BETWEEN '2000-01-01' AND '9000-01-01' THEN s.{0}{zone} END"
"""A period's end, or NULL (unknown) where the application wrote infinity or a year no calendar of ours holds."""


class PayersSql:
    """The payers of one meter, in order. `tables` holds those of lookups whose columns may lack the zone."""

    def __init__(
        self,
        payers: Sequence[PayerSettings],
        lookups: Mapping[str, LookupSettings],
        tables: Mapping[Parts, TableInfo],
    ) -> None:
        self._columns = [payer.column for payer in payers]
        used = [lookups[payer.lookup] for payer in payers]
        self._lookups = [_Lookup(lookup, tables.get(lookup.table_parts)) for lookup in used]

    @classmethod
    def of(
        cls, connection: psycopg.Connection, payers: Sequence[PayerSettings], lookups: Mapping[str, LookupSettings]
    ) -> "PayersSql":
        """Return them, having asked the catalogs for what they need, within the caller's transaction."""
        return cls(payers, lookups, _zoned_tables(connection, [lookups[payer.lookup] for payer in payers]))

    def columns(self) -> sql.Composed:
        """Return the columns of the usage table `u` that lookups are asked by, as `page` names them."""
        return sql.SQL(", ").join(
            sql.SQL("u.{} AS {}").format(quoted(column), quoted(f"payer_{n}")) for n, column in enumerate(self._columns)
        )

    def answers(self, *, as_text: bool = False) -> sql.Composed:
        """Return the SELECT of all lookups' answers for `page`: a UNION of one for each, in order.

        `as_text`: the page has one subject, as text, whatever the lookups' columns are.
        """
        return sql.SQL("\n    UNION ALL\n").join(
            lookup.answers(n, as_text=as_text) for n, lookup in enumerate(self._lookups)
        )

    def of_customers(self) -> sql.Composed:
        """Return the SELECT of all lookups' subscriptions of the customers of `candidate`."""
        return sql.SQL("\n    UNION ALL\n").join(lookup.of_customers() for lookup in self._lookups)


def paying(connection: psycopg.Connection, lookups: Sequence[LookupSettings]) -> sql.Composed:
    """Return the SELECT of the customers whose subscription is in force at %(now)s, and their periods' ends."""
    tables = _zoned_tables(connection, lookups)
    return sql.SQL("\nUNION\n").join(_Lookup(one, tables.get(one.table_parts)).paying() for one in lookups)


def _zoned_tables(connection: psycopg.Connection, lookups: Sequence[LookupSettings]) -> Mapping[Parts, TableInfo]:
    zoned = [lookup.table_parts for lookup in lookups if lookup.time_zone is not None]
    return find_tables(connection, zoned) if zoned else {}


class _Lookup:
    """One lookup over its table, whose columns' types are known where `table` is given."""

    def __init__(self, settings: LookupSettings, table: TableInfo | None) -> None:
        self._settings = settings
        self._table = table

    def answers(self, n: int, *, as_text: bool) -> sql.Composed:
        settings = self._settings
        return sql.SQL(query("payers", "payer")).format(
            lookup=sql.Literal(n),
            payer=quoted("payer_0" if as_text else f"payer_{n}"),
            subject=sql.SQL("s.{}::text" if as_text else "s.{}").format(quoted(settings.subject)),
            started=self._column(settings.started_at, _STARTED, "'-infinity'::timestamptz"),
            tiebreak=self._column(settings.id, "s.{0}", "NULL::int"),
            **self._common(),
        )

    def of_customers(self) -> sql.Composed:
        return sql.SQL(query("payers", "payer_of_customer")).format(**self._common())

    def paying(self) -> sql.Composed:
        return sql.SQL(query("doctor", "paying")).format(subject=quoted(self._settings.subject), **self._common())

    def _common(self) -> dict[str, sql.Composable]:
        settings = self._settings
        return {
            "table": quoted(*settings.table_parts),
            "customer": quoted(settings.customer),
            "period_start": self._column(settings.period_start, _PERIOD_BOUND, "NULL::timestamptz"),
            "period_end": self._column(settings.period_end, _PERIOD_BOUND, "NULL::timestamptz"),
            "in_force": self._in_force(),
        }

    def _in_force(self) -> sql.Composed:
        """Return the condition under which a subscription pays for usage at `page.occurred_at`."""
        settings = self._settings
        conditions: list[sql.Composable] = [
            self._column(settings.started_at, "(s.{0}{zone} <= page.occurred_at) IS NOT FALSE", "true"),
            self._column(settings.ended_at, "(page.occurred_at < s.{0}{zone}) IS NOT FALSE", "true"),
        ]
        if settings.status and not settings.ended_at:
            statuses = sql.SQL(", ").join(map(sql.Literal, LIVE_STATUSES))
            conditions.append(sql.SQL("s.{}::text IN ({})").format(quoted(settings.status), statuses))
        return sql.SQL(" AND ").join(conditions)

    def _column(self, column: str | None, template: LiteralString, otherwise: LiteralString) -> sql.Composed | sql.SQL:
        if column is None:
            return sql.SQL(otherwise)
        zone = at_zone(self._table, column, self._settings.time_zone)
        return sql.SQL(template).format(quoted(column), zone=raw(zone))
