"""Whether PostgreSQL finds by an index what a run asks for: it is asked for its plans, and nothing is read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from meterctl.core.diagnosis import Finding, failed, passed

PAGE = 500
"""Rows of a page and lanes of a claim, as `report` asks for them unless it is told otherwise."""

Plan = Mapping[str, Any]
"""A node of EXPLAIN (FORMAT JSON)."""


def plan_of(connection: psycopg.Connection, text: sql.Composed, parameters: Mapping[str, Any]) -> Plan:
    """Return how PostgreSQL would carry a statement out; also one that writes, in a transaction that may not."""
    row = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) ") + text, parameters).fetchone()
    assert row is not None  # noqa: S101 -- EXPLAIN gives one row
    plan: Plan = row[0][0]["Plan"]
    return plan


def collecting(plan: Plan, table: str) -> Finding:
    """Given the plan of a page of unreported rows, say whether an index serves."""
    page = next(node for node in _nodes(plan) if node.get("Subplan Name") == "CTE page")
    scans = _scans(page, {"u"}) or _scans(page, None)
    if all(_by_index(node) for node in scans):
        return passed(f"a page of unreported rows of {table} is read by {_names(scans)}")
    message = f"for a page of unreported rows PostgreSQL reads all of {table}: no index serves"
    return failed(message, f"meterctl db adopt {table}; for a view, an index on the table below")


def claiming(plan: Plan, event_name: str) -> Finding:
    """Given the plan of a claim, say whether an index of the ledger serves."""
    scans = _scans(plan, {"o", "e"})
    if scans and all(_by_index(node) for node in scans):
        return passed(f"events of {event_name} to be sent are found by {_names(scans)}")
    message = "for every claim PostgreSQL reads the whole ledger: an index of meterctl.meter_events is gone"
    return failed(message, "compare with `meterctl db migrate --print`, and make it again")


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
