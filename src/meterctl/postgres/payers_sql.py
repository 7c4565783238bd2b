"""Who pays for usage: a meter's lookups become one SELECT over a CTE `page` of usage, whatever the source."""

from collections.abc import Mapping
from typing import LiteralString

from psycopg import sql

from meterctl.postgres.catalog import Parts, TableInfo
from meterctl.postgres.fragments import at_zone, name, raw
from meterctl.postgres.queries import query
from meterctl.settings import LookupSettings, MeterSettings

LIVE_STATUSES = ("active", "trialing", "past_due")
"""Statuses of a subscription that pays, where its end is not mapped to a column."""

_STARTED: LiteralString = "coalesce(s.{0}{zone}, '-infinity'::timestamptz)"

_PERIOD_BOUND: LiteralString = "CASE WHEN s.{0} BETWEEN '2000-01-01' AND '9000-01-01' THEN s.{0}{zone} END"
"""A period's end, or NULL (unknown) where the application wrote infinity or a year no calendar of ours holds."""


def payer_columns(meter: MeterSettings) -> sql.Composed:
    """Return the columns of the usage table `u` that lead to its payers, as `page` has them: payer_0, payer_1, …."""
    columns = (sql.SQL("u.{} AS {}").format(name(payer.column), _payer(n)) for n, payer in enumerate(meter.payers))
    return sql.SQL(", ").join(columns)


def chosen_payer(
    meter: MeterSettings, lookups: Mapping[str, LookupSettings], tables: Mapping[Parts, TableInfo]
) -> sql.Composed:
    """Return the SELECT of who pays for each row of the CTE `page`: (n, subject, customer, period bounds, ambiguous).

    `tables` says of which types the lookups' columns are.
    """
    used = [lookups[payer.lookup] for payer in meter.payers]
    selects = [_select(n, lookup, tables.get(lookup.table_parts)) for n, lookup in enumerate(used)]
    return sql.SQL(query("payers", "chosen")).format(payers=sql.SQL("\n    UNION ALL\n").join(selects))


def _payer(n: int) -> sql.SQL:
    return name(f"payer_{n}")


def _select(n: int, lookup: LookupSettings, table: TableInfo | None) -> sql.Composed:
    def instant(column: str | None, template: LiteralString, otherwise: LiteralString) -> sql.Composed | sql.SQL:
        if column is None:
            return sql.SQL(otherwise)
        return sql.SQL(template).format(name(column), zone=raw(at_zone(table, column, lookup.time_zone)))

    return sql.SQL(query("payers", "payer")).format(
        lookup=sql.Literal(n),
        payer=_payer(n),
        table=name(*lookup.table_parts),
        subject=name(lookup.subject),
        customer=name(lookup.customer),
        started=instant(lookup.started_at, _STARTED, "'-infinity'::timestamptz"),
        tiebreak=instant(lookup.id, "s.{0}", "NULL::int"),
        period_start=instant(lookup.period_start, _PERIOD_BOUND, "NULL::timestamptz"),
        period_end=instant(lookup.period_end, _PERIOD_BOUND, "NULL::timestamptz"),
        in_force=sql.SQL(" AND ").join(
            (
                instant(lookup.started_at, "(s.{0}{zone} <= page.occurred_at) IS NOT FALSE", "true"),
                instant(lookup.ended_at, "(page.occurred_at < s.{0}{zone}) IS NOT FALSE", "true"),
                _live(lookup),
            )
        ),
    )


def _live(lookup: LookupSettings) -> sql.Composed | sql.SQL:
    """Return the condition on a subscription's status, which only counts where its end is not known."""
    if lookup.ended_at is not None or lookup.status is None:
        return sql.SQL("true")
    statuses = sql.SQL(", ").join(map(sql.Literal, LIVE_STATUSES))
    return sql.SQL("s.{}::text IN ({})").format(name(lookup.status), statuses)
