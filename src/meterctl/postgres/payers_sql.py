"""Who pays, in SQL: the configuration's lookups asked for every line of a `page`. Names are quoted here."""

from collections.abc import Mapping, Sequence
from typing import LiteralString

from psycopg import sql

from meterctl.postgres.queries import query
from meterctl.settings.model import LookupSettings, PayerSettings

LIVE_STATUSES = ("active", "trialing", "past_due")
"""Statuses of a subscription that pays, where its end is not mapped to a column."""

PERIOD_BOUND: LiteralString = "CASE WHEN s.{0} BETWEEN '2000-01-01' AND '9000-01-01' THEN s.{0} END"
"""A period's end, or NULL (unknown) where the application wrote infinity or a year no calendar of ours holds."""


class PayersSql:
    """The payers of one meter, in order."""

    def __init__(self, payers: Sequence[PayerSettings], lookups: Mapping[str, LookupSettings]) -> None:
        self._payers = [(payer, lookups[payer.lookup]) for payer in payers]

    def columns(self) -> sql.Composed:
        """Return the columns of the usage table `u` that lookups are asked by, as `page` names them."""
        return sql.SQL(", ").join(
            sql.SQL("u.{} AS {}").format(quoted(payer.column), quoted(f"payer_{n}"))
            for n, (payer, _) in enumerate(self._payers)
        )

    def answers(self, *, as_text: bool = False) -> sql.Composed:
        """Return the SELECT of all lookups' answers for `page`: a UNION of one for each, in order.

        `as_text`: the page has one subject, as text, whatever the lookups' columns are.
        """
        return sql.SQL("\n    UNION ALL\n").join(
            self._answers(n, lookup, as_text=as_text) for n, (_, lookup) in enumerate(self._payers)
        )

    def of_customers(self) -> sql.Composed:
        """Return the SELECT of all lookups' subscriptions of the customers of `gone`."""
        return sql.SQL("\n    UNION ALL\n").join(
            sql.SQL(query("payers", "payer_of_customer")).format(
                table=quoted(*lookup.table.split(".")),
                customer=quoted(lookup.customer),
                period_start=_column(lookup.period_start, PERIOD_BOUND, "NULL::timestamptz"),
                period_end=_column(lookup.period_end, PERIOD_BOUND, "NULL::timestamptz"),
                in_force=_in_force(lookup),
            )
            for _, lookup in self._payers
        )

    def _answers(self, n: int, lookup: LookupSettings, *, as_text: bool) -> sql.Composed:
        return sql.SQL(query("payers", "payer")).format(
            lookup=sql.Literal(n),
            payer=quoted("payer_0" if as_text else f"payer_{n}"),
            table=quoted(*lookup.table.split(".")),
            subject=sql.SQL("s.{}::text" if as_text else "s.{}").format(quoted(lookup.subject)),
            customer=quoted(lookup.customer),
            started=_column(lookup.started_at, "coalesce(s.{}, '-infinity'::timestamptz)", "'-infinity'::timestamptz"),
            tiebreak=_column(lookup.id, "s.{}", "NULL::int"),
            period_start=_column(lookup.period_start, PERIOD_BOUND, "NULL::timestamptz"),
            period_end=_column(lookup.period_end, PERIOD_BOUND, "NULL::timestamptz"),
            in_force=_in_force(lookup),
        )


def paying(lookup: LookupSettings) -> sql.Composed:
    """Return the SELECT of a lookup's customers whose subscription is in force at %(now)s, and their periods' ends."""
    return sql.SQL(query("doctor", "paying")).format(
        table=quoted(*lookup.table.split(".")),
        subject=quoted(lookup.subject),
        customer=quoted(lookup.customer),
        period_end=_column(lookup.period_end, PERIOD_BOUND, "NULL::timestamptz"),
        in_force=_in_force(lookup),
    )


def quoted(*parts: str) -> sql.SQL:
    """Return a table's or column's name quoted."""
    return raw(sql.Identifier(*parts).as_string(None))


def raw(text: str) -> sql.SQL:
    """Return SQL of the operator's own as it stands; psycopg would read a single `%` as a parameter."""
    return sql.SQL(text.replace("%", "%%"))


def _column(column: str | None, template: LiteralString, otherwise: LiteralString) -> sql.Composed | sql.SQL:
    return sql.SQL(template).format(quoted(column)) if column else sql.SQL(otherwise)


def _in_force(lookup: LookupSettings) -> sql.Composed:
    """Return the condition under which a subscription pays for usage at `page.occurred_at`."""
    conditions: list[sql.Composable] = [sql.SQL("true")]
    if lookup.started_at:
        started = quoted(lookup.started_at)
        conditions.append(sql.SQL("(s.{0} <= page.occurred_at) IS NOT FALSE").format(started))
    if lookup.ended_at:
        conditions.append(sql.SQL("(page.occurred_at < s.{0}) IS NOT FALSE").format(quoted(lookup.ended_at)))
    elif lookup.status:
        statuses = sql.SQL(", ").join(map(sql.Literal, LIVE_STATUSES))
        conditions.append(sql.SQL("s.{}::text IN ({})").format(quoted(lookup.status), statuses))
    return sql.SQL(" AND ").join(conditions)
