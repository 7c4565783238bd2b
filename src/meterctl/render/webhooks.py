"""What the webhooks commands print: what was done about each event, and what is kept of them."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from meterctl.core.error_report import REPORT_TYPES
from meterctl.core.subscription import UNMAPPED
from meterctl.errors import ExitCode
from meterctl.render.tables import table
from meterctl.render.values import iso, jsonable, printable, shown

if TYPE_CHECKING:
    from meterctl.actions.stripe_events import Pulled

PULL_SCHEMA, REPLAY_SCHEMA = "meterctl.webhooks_pull/1", "meterctl.webhooks_replay/1"
LIST_SCHEMA, SHOW_SCHEMA = "meterctl.webhooks_list/1", "meterctl.webhooks_show/1"

STATUSES = ("processed", "ignored", "failed", "skipped", "refused")
"""What may be done about an event: skipped is what was done before, refused what is another account's or mode's."""

LISTED = ("event_id", "type", "created", "status", "source", "outcome")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deed:
    """What was done about an event."""

    event_id: str
    type: str
    created: datetime
    status: str
    outcome: str | None

    @property
    def line(self) -> str:
        """It, for a person."""
        said = f": {printable(self.outcome)}" if self.outcome else ""
        return f"{printable(self.event_id)} {printable(self.type)} {iso(self.created)} {self.status}{said}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "event_id": self.event_id,
            "type": self.type,
            "created": iso(self.created),
            "status": self.status,
            "outcome": self.outcome,
        }


@dataclass(kw_only=True, slots=True)
class EventsDocument:
    """What a pull or a replay did. `notes` are sentences for stderr, each with the exit code it means."""

    command: str
    dry_run: bool = False
    deeds: list[Deed] = field(default_factory=list)
    pulled: list["Pulled"] = field(default_factory=list)
    left_count: int = 0
    notes: list[tuple[ExitCode, str]] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How many events came to what."""
        return Counter(deed.status for deed in self.deeds)

    @property
    def exit_code(self) -> ExitCode:
        """The worst of what happened."""
        codes = [code for code, _ in self.notes]
        codes += [ExitCode.PROBLEMS] if self.counts["failed"] else []
        codes += [ExitCode.BAD_INPUT] if self.counts["refused"] else []
        return ExitCode.worst(codes)

    def as_dict(self) -> dict[str, Any]:
        """Return the document whose keys scripts rely on."""
        return {
            "schema": PULL_SCHEMA if self.command == "pull" else REPLAY_SCHEMA,
            "dry_run": self.dry_run,
            "exit_code": int(self.exit_code),
            **({"new": self._new_count, "known": self._known_count} if self.command == "pull" else {}),
            **{status: self.counts[status] for status in STATUSES},
            "left": self.left_count,
            "events": [deed.as_dict() for deed in self.deeds],
            "notes": [note for _, note in self.notes],
        }

    @property
    def _new_count(self) -> int:
        return sum(one.new_count for one in self.pulled)

    @property
    def _known_count(self) -> int:
        return sum(one.known_count for one in self.pulled)

    @property
    def line(self) -> str:
        """The result on one line."""
        listed = f"{self._new_count} new events ({self._known_count} known); " if self.command == "pull" else ""
        counts = ", ".join(f"{self.counts[status]} {status}" for status in STATUSES if self.counts[status])
        left = f", {self.left_count} left for later" if self.left_count else ""
        return f"{listed}{counts or 'nothing to do'}{left}"


def show_events(document: EventsDocument, *, as_json: bool, quiet: bool) -> None:
    """Print what was done; notes are on stderr. A pull names the events that somebody should look at, a replay all."""
    for _, note in document.notes:
        print(f"meterctl: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(document.as_dict()))
        return
    if quiet and document.exit_code is ExitCode.OK:
        return
    lines = [deed.line for deed in document.deeds if document.command == "replay" or _is_for_a_person(deed)]
    print("\n".join([*lines, document.line]))


def _is_for_a_person(deed: Deed) -> bool:
    return deed.status == "failed" or deed.type in REPORT_TYPES or deed.outcome == UNMAPPED


def show_list(events: Sequence[Mapping[str, Any]], *, limit: int, as_json: bool, colour: bool) -> None:
    """Print a list of stored events; say so where `limit` may have cut it."""
    if as_json:
        documents = [{name: jsonable(value) for name, value in event.items()} for event in events]
        print(json.dumps({"schema": LIST_SCHEMA, "events": documents}))
        return
    if not events:
        print("no event matches")
        return
    rows = [[shown(_told(event, name)) for name in LISTED] for event in events]
    print(table([name.replace("_", " ") for name in LISTED], rows, console=sys.stdout.isatty(), colour=colour))
    if len(events) == limit:
        print(f"the newest {limit}; --limit shows more", file=sys.stderr)


def _told(event: Mapping[str, Any], name: str) -> object:
    return event["error"] if name == "outcome" and event["status"] == "failed" else event[name]


def show_in_full(
    events: Sequence[Mapping[str, Any]], reports: Mapping[str, Sequence[Mapping[str, Any]]], *, as_json: bool
) -> None:
    """Print all that is kept of events; `reports` has by event id what an error report came to."""
    if as_json:
        documents = [
            {name: jsonable(value) for name, value in event.items()}
            | {"error_report": [{n: jsonable(v) for n, v in line.items()} for line in reports[event["event_id"]]]}
            for event in events
        ]
        print(json.dumps({"schema": SHOW_SCHEMA, "events": documents}))
        return
    print("\n\n".join(_in_full(event, reports[event["event_id"]]) for event in events))


def _in_full(event: Mapping[str, Any], report: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{name}: {shown(value)}" for name, value in event.items() if name != "payload" and value is not None]
    lines += [f"error report: {_sample(line)}" for line in report]
    return "\n".join([*lines, "payload:", json.dumps(event["payload"], indent=2)])


def _sample(line: Mapping[str, Any]) -> str:
    if line["code"] is None:
        return f"{line['error_count']} errors of {shown(line['event_name'])}, none of them named"
    ours = f"ledger event {line['meter_event_id']}, {line['state']}" if line["meter_event_id"] else "none of ours"
    verdict = line["verdict"] or "not decided yet"
    return f"{printable(line['named'] or '-')} {printable(line['code'])}: {ours}; {verdict}"
