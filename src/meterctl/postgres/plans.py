"""Whether PostgreSQL finds by an index what a run asks for: it is asked for its plans, and nothing is read."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg

from meterctl.core.diagnosis import Finding, failed, passed
from meterctl.core.model import PAST_LIMIT, RESEND_LIMIT
from meterctl.ports import RowWindow
from meterctl.postgres.connect import transaction
from meterctl.postgres.ledger import ledger_statement
from meterctl.postgres.queries import query
from meterctl.postgres.rows import EXPLAIN, PostgresRows

PAGE = 500
"""Rows of a page, as `report` reads them unless it is told otherwise."""

Plan = Mapping[str, Any]
"""A node of EXPLAIN (FORMAT JSON)."""


def collecting(connection: psycopg.Connection, rows: PostgresRows, window: RowWindow, table: str) -> Iterator[Finding]:
    """Find out whether a page of unreported rows is read by an index."""
    with transaction(connection, read_only=True):
        connection.execute(query("doctor", "without_seqscan"))
        plan = rows.explain(window, batch_size=PAGE)
    page = next(node for node in _nodes(plan) if node.get("Subplan Name") == "CTE page")
    scans = _scans(page, {"u"}) or _scans(page, None)
    if all(_by_index(node) for node in scans):
        yield passed(f"a page of unreported rows of {table} is read by {_names(scans)}")
    else:
        message = f"for a page of unreported rows PostgreSQL reads all of {table}: no index serves"
        yield failed(message, f"meterctl db adopt {table}; for a view, an index on the table below")


def claiming(connection: psycopg.Connection, event_name: str, now: datetime) -> Iterator[Finding]:
    """Find out whether events to be sent are found by an index of the ledger."""
    parameters = {
        "event_name": event_name,
        "run_id": 0,
        "claims_max": PAGE,
        "customers": [],
        "scan_max": PAGE,
        "after_customer": "",
        "now": now,
        "doubt_since": now,
        "doubt_horizon": now - RESEND_LIMIT,
        "expired_before": now - PAST_LIMIT,
    }
    with transaction(connection, read_only=True):
        connection.execute(query("doctor", "without_seqscan"))
        row = connection.execute(EXPLAIN + ledger_statement("claim_fresh"), parameters).fetchone()
    assert row is not None  # noqa: S101 -- EXPLAIN gives one row
    scans = _scans(row[0][0]["Plan"], {"o", "e"})
    if scans and all(_by_index(node) for node in scans):
        yield passed(f"events of {event_name} to be sent are found by {_names(scans)}")
    else:
        message = "for every claim PostgreSQL reads the whole ledger: an index of meterctl.meter_events is gone"
        yield failed(message, "compare with `meterctl db migrate --print`, and make it again")


def _nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _scans(plan: Plan, aliases: set[str] | None) -> list[Plan]:
    """Return where tables are read, those that the statement calls so; a partition is called `u_1` after its `u`."""
    scans = [node for node in _nodes(plan) if "Relation Name" in node]
    return [node for node in scans if aliases is None or str(node.get("Alias")).partition("_")[0] in aliases]


def _by_index(node: Plan) -> bool:
    """Whether a scan goes to what it wants, not along all of an index."""
    return any("Index Cond" in below for below in _nodes(node))


def _names(scans: Sequence[Plan]) -> str:
    names = (str(node["Index Name"]) for scan in scans for node in _nodes(scan) if "Index Name" in node)
    return ", ".join(dict.fromkeys(names))
