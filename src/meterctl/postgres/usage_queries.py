"""What the statements of all sources share: parameters, the way they are fetched, and how their counts are read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.identifier import HASHED_PREFIX_LENGTH, IDENTIFIER_LENGTH_MAX
from meterctl.core.scope import Scope, UsageSpan
from meterctl.core.value import DIGITS_MAX, PLACES_MAX
from meterctl.errors import ConfigurationError
from meterctl.ports import KindCount, RowWindow, SpanCounts, UsageSource
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query
from meterctl.postgres.scope_sql import in_scope, scope_parameters
from meterctl.settings.meters import MeterSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerOwner:
    """Whose ledger it is: the Stripe account, and its mode."""

    account: str
    livemode: bool


def meter_parameters(key: str, meter: MeterSettings, owner: LedgerOwner) -> dict[str, Any]:
    """Return what every statement of a meter is told; `key` is the meter's key in the configuration."""
    return {
        "meter": key,
        "event_name": meter.event_name,
        "account": owner.account,
        "livemode": owner.livemode,
        "identifier_length_max": IDENTIFIER_LENGTH_MAX,
        "hashed_prefix_length": HASHED_PREFIX_LENGTH,
        "whole": meter.values == "whole",
        "digits_max": DIGITS_MAX,
        "places_max": PLACES_MAX,
        "customer_payload_key": meter.customer_payload_key,
        "value_payload_key": meter.value_payload_key,
    }


def fetch_usage(
    connection: psycopg.Connection,
    text: sql.Composed,
    parameters: Mapping[str, Any],
    *,
    key: str,
    table: str,
    where: str | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a statement over the application's tables. Raises ConfigurationError naming the meter."""
    try:
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(text, parameters).fetchall()
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        if isinstance(error, pg.InsufficientPrivilege):
            raise
        condition = f" (its `where` is: {where})" if where else ""
        raise ConfigurationError(
            f"meter {key}: PostgreSQL cannot read the rows of {table}{condition}: {str(error).splitlines()[0]}",
            hint="correct the meter in the configuration, then run `meterctl db check`",
        ) from error


def kind_count(row: Mapping[str, Any]) -> KindCount:
    """Given a line of a statement's counts, return it as the actions read it."""
    return KindCount(
        outcome=row["outcome"],
        code=row["code"],
        event_count=row["event_count"],
        units=row["units"] if row["units"] is not None else Decimal(0),
        sample_ids=tuple(row["sample_ids"] or ()),
        customer_count=row.get("customer_count", 0),
        oldest=row.get("oldest"),
        late_count=row.get("late_count", 0),
    )


def events_of_span(connection: psycopg.Connection, event_name: str, scope: Scope) -> SpanCounts:
    """Return how many of the ledger's events of the scope's span are reported, and how many became too old."""
    text = sql.SQL(query("ledger", "span_counts")).format(only=in_scope(scope))
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(text, scope_parameters(scope) | {"event_name": event_name}).fetchone() or {}
    return SpanCounts(reported=row["reported"], too_old=row["expired"])


def count_too_old(source: UsageSource, window: RowWindow) -> int:
    """Return how much usage from before the window's `fresh_from` is still due, though Stripe takes it no more."""
    old = UsageSpan(since=window.since, until=window.fresh_from)
    if old.since >= old.until:
        return 0
    until = min(window.until, old.last)
    kinds = source.preview(
        replace(window, until=until, expired_before=old.until, span=old), doubt_horizon=window.fresh_from
    )
    return sum(kind.event_count for kind in kinds if kind.outcome == "expired")
