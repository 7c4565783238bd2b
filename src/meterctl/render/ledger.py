"""What the ledger commands print: events as a table or in full, and what a change would do and did."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from meterctl.core.event_group import EventGroup
from meterctl.core.value import formatted
from meterctl.render.tables import table
from meterctl.render.values import jsonable, shown

SCHEMA = "meterctl.ledger/1"

LISTED = ("id", "state", "event_name", "customer", "quantity", "occurred_at", "source_row_id", "error_code")

SAMPLES_MAX = 5

DONE = {"retry": "due again; the next report delivers them", "waive": "waived"}


def event_dict(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event as our JSON documents hold it."""
    return {name: jsonable(value) for name, value in event.items()}


def show_events(events: Sequence[Mapping[str, Any]], *, limit: int, as_json: bool, colour: bool) -> None:
    """Print a list of events; say so where `limit` may have cut it."""
    if as_json:
        print(json.dumps({"schema": SCHEMA, "events": [event_dict(event) for event in events]}))
        return
    if not events:
        print("no event matches")
        return
    rows = [[shown(event[name]) for name in LISTED] for event in events]
    print(table([name.replace("_", " ") for name in LISTED], rows, console=sys.stdout.isatty(), colour=colour))
    if len(events) == limit:
        print(f"the newest {limit}; --limit shows more", file=sys.stderr)


def show_in_full(
    events: Sequence[Mapping[str, Any]], chains: Mapping[int, Sequence[Mapping[str, Any]]], *, as_json: bool
) -> None:
    """Print all the ledger knows of events; `chains` has what each replaced and was replaced by, itself included."""
    if as_json:
        documents = [event_dict(event) | {"chain": [dict(link) for link in chains[event["id"]]]} for event in events]
        print(json.dumps({"schema": SCHEMA, "events": documents}))
        return
    print("\n\n".join(_in_full(event, chains[event["id"]]) for event in events))


def _in_full(event: Mapping[str, Any], chain: Sequence[Mapping[str, Any]]) -> str:
    known = {
        name: json.dumps(value) if isinstance(value, dict) else shown(value)
        for name, value in event.items()
        if value is not None
    }
    if len(chain) > 1:
        known["chain"] = " → ".join(f"{link['id']} {link['state']} ({shown(link['identifier'])})" for link in chain)
    width = max(map(len, known))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in known.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A change by hand: what was asked for and what came of it. `refused` is by event id; `left_out` a count."""

    verb: str
    reason: str
    dry_run: bool
    groups: Sequence[EventGroup]
    left_out: int
    done_ids: Sequence[int] = ()
    refused: Mapping[int, str]
    asked_no: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the document whose keys scripts rely on."""
        return {
            "schema": SCHEMA,
            "command": self.verb,
            "dry_run": self.dry_run,
            "reason": self.reason,
            "found": [_group_dict(group) for group in self.groups],
            "left_out": self.left_out,
            self.verb: list(self.done_ids),
            "refused": [{"id": event_id, "reason": why} for event_id, why in self.refused.items()],
        }


def _group_dict(group: EventGroup) -> dict[str, Any]:
    return {
        "meter": group.meter,
        "state": group.state,
        "code": group.code,
        "count": len(group.ids),
        "units": formatted(group.units),
        "sample_ids": list(group.ids[:SAMPLES_MAX]),
    }


def show_plan(verb: str, groups: Sequence[EventGroup]) -> None:
    """Say on stderr what a change is about to do."""
    if not groups:
        _say("no event matches")
        return
    units = sum((group.units for group in groups), Decimal(0))
    count = sum(len(group.ids) for group in groups)
    _say(f"would {verb} {count} events, {formatted(units)} units, {groups[0].customer_count} customers")
    for group in groups:
        samples = ", ".join(map(str, group.ids[:SAMPLES_MAX]))
        _say(f"  {len(group.ids)} {shown(group.code)} of {group.meter} (e.g. event {samples})")


def show_change(change: Change, *, as_json: bool) -> None:
    """Print what came of a change."""
    if as_json:
        print(json.dumps(change.as_dict()))
        return
    for event_id, why in change.refused.items():
        print(f"event {event_id} not taken: {why}")
    if change.asked_no:
        print("nothing was changed")
    elif change.done_ids:
        verb = "would be" if change.dry_run else "are"
        print(f"{len(change.done_ids)} events {verb} {DONE[change.verb]}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
