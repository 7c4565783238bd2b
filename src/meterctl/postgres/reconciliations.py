"""Reconciling on PostgreSQL: whom to compare, what the ledger says of them, and what was found."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from meterctl.core.reconciliation import Difference, Proof, SpanBooks, proof_after
from meterctl.core.settlement import MINUTE
from meterctl.core.spans import DAY, HOUR, Span
from meterctl.core.value import formatted
from meterctl.ports import Comparison, KnownCustomer
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query
from meterctl.postgres.settlements import WEIGHTS

UNIT_NAMES = {MINUTE: "minute", HOUR: "hour", DAY: "day"}


class PostgresReconciliations:
    """`ReconciliationLedger` of one meter."""

    def __init__(self, connection: psycopg.Connection, *, event_name: str, formula: str, run_id: int) -> None:
        self._connection = connection
        self._scope = {"event_name": event_name, "run_id": run_id}
        self._weight = WEIGHTS[formula]

    def customers(self, span: Span, only: Sequence[str]) -> list[KnownCustomer]:
        """Return the customers with any event in the span, or those that are named."""
        with transaction(self._connection, read_only=True):
            return [KnownCustomer(**row) for row in self._fetch("customers", _of(span) | {"only": list(only)})]

    def books(
        self, customers: Sequence[str], span: Span, unit: timedelta, *, fresh_since: datetime
    ) -> Mapping[tuple[str, datetime], SpanBooks]:
        """Return what the ledger says by customer and start of the minute, hour or UTC day, cut at the span's ends."""
        parameters = {"customers": list(customers), "unit": UNIT_NAMES[unit], "fresh_since": fresh_since}
        found: defaultdict[tuple[str, datetime], list[dict[str, Any]]] = defaultdict(list)
        with transaction(self._connection, read_only=True):
            for row in self._fetch("books", _of(span) | parameters):
                found[row["customer"], row["window_start"].astimezone(UTC)].append(row)
        return {key: _books_of(rows) for key, rows in found.items()}

    def store(self, comparison: Comparison, *, is_full: bool) -> Proof:
        """Keep what was found; return what is proven of the customer now."""
        differs = bool(comparison.differences)
        found = Proof(start=comparison.span.start, end=comparison.equal_until, at=comparison.read_at)
        with transaction(self._connection):
            of = {"customer": comparison.customer}
            self._connection.execute(query("reconcile", "one_at_a_time"), self._scope | of)
            replaced = self._fetch("supersede", of)
            previous = _proof_of(replaced[0]) if replaced else None
            proof = proof_after(previous, found, is_full=is_full, differs=differs)
            self._connection.execute(query("reconcile", "store"), self._scope | _row(comparison, proof))
        return proof

    def _fetch(self, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        text = query("reconcile", name)
        statement = sql.SQL(text).format(weight=self._weight) if name == "books" else sql.SQL(text)
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, self._scope | parameters).fetchall()


def _of(span: Span) -> dict[str, Any]:
    return {"start": span.start, "end": span.end}


def _books_of(rows: Sequence[Mapping[str, Any]]) -> SpanBooks:
    """Return the books of one customer and window: a row for each kind and, but for what is accepted, weight."""
    weights: defaultdict[str, dict[Decimal, int]] = defaultdict(dict)
    for row in rows:
        if row["weight"] is not None:
            weights[row["kind"]][row["weight"]] = row["event_count"]
    counted = [row for row in rows if row["kind"] in {"accepted", "fresh"}]
    return SpanBooks(
        accepted=sum((row["total"] for row in counted), Decimal(0)),
        accepted_size=sum((row["size"] for row in counted), Decimal(0)),
        accepted_count=sum(row["event_count"] for row in counted),
        late_count=sum(row["late_count"] for row in counted),
        late_units=sum((row["late_units"] for row in counted), Decimal(0)),
        fresh=weights["fresh"],
        in_doubt=weights["in_doubt"],
        held=weights["held"],
        sending=weights["sending"],
        cancelled=weights["cancelled"],
        rejected=weights["rejected"],
    )


def _proof_of(row: Mapping[str, Any]) -> Proof:
    return Proof(start=row["proven_from"], end=row["proven_until"], at=row["proven_at"])


def _row(comparison: Comparison, proof: Proof) -> dict[str, Any]:
    return _of(comparison.span) | {
        "customer": comparison.customer,
        "ledger_total": comparison.ledger_total,
        "stripe_total": comparison.stripe_total,
        "read_count": comparison.read_count,
        "differences": Jsonb([_kept(difference) for difference in comparison.differences]),
        "proven": not comparison.differences,
        "read_at": comparison.read_at,
        "proven_from": proof.start,
        "proven_until": proof.end,
        "proven_at": proof.at,
    }


def _kept(difference: Difference) -> dict[str, Any]:
    return {
        "start": difference.span.start.isoformat(),
        "end": difference.span.end.isoformat(),
        "ledger_total": formatted(difference.ledger_total),
        "stripe_total": formatted(difference.stripe_total),
        "cause": difference.cause.value,
        "command": difference.command,
    }
