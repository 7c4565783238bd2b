"""What `settle` prints: what was decided, and for what is held the figures and the commands."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from meterctl.core.settlement import HeldEvent, HeldReason
from meterctl.core.value import formatted
from meterctl.errors import ExitCode
from meterctl.render.tables import table
from meterctl.render.values import iso, jsonable, shown

if TYPE_CHECKING:
    from meterctl.actions.settle import Settlements

SCHEMA = "meterctl.settle/1"

HELD_SHOWN_MAX = 100
"""Held events listed at once."""

HELD_COLUMNS = ("event", "customer", "minute", "value", "Stripe has", "ledger has", "read", "last read", "why")

REASONS: dict[str, str] = {
    HeldReason.SHORTFALL: "Stripe has less than the ledger counts as accepted",
    HeldReason.FOREIGN: "no combination of the doubts makes up Stripe's total: does somebody else report, too?",
    HeldReason.AMBIGUOUS: "several combinations of the doubts make up Stripe's total",
    HeldReason.TOO_OLD: "a level that may have arrived, and is older than the 35 days in which it could be sent again",
    HeldReason.IMPRECISE: "the total is too large for Stripe's number to tell the doubts apart",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterSettled:
    """What settling one meter came to. `note` says what kept it from being done, with `code`."""

    event_name: str
    result: "Settlements | None" = None
    code: ExitCode = ExitCode.OK
    note: str | None = None

    def figures(self) -> dict[str, int]:
        """Return the counts under the names `--json` uses."""
        if self.result is None:
            return dict.fromkeys(("reads", "present", "absent", "expired", "rejected", "held", "waiting"), 0)
        return {
            "reads": self.result.read_count,
            "present": len(self.result.present),
            "absent": sum(not (event.expired or event.rejected) for event in self.result.absent),
            "expired": sum(event.expired for event in self.result.absent),
            "rejected": sum(event.rejected for event in self.result.absent),
            "held": sum(map(len, self.result.held.values())),
            "waiting": self.result.waiting_count,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SettleDocument:
    """A finished settling. `held` is everything of these meters that waits for a person, the oldest first."""

    meters: Sequence[MeterSettled]
    held: Sequence[HeldEvent] = field(default=())
    signal_number: int | None = None

    @property
    def exit_code(self) -> ExitCode:
        """The worst of what happened; 10 while a person is needed."""
        codes = [meter.code for meter in self.meters]
        codes += [ExitCode.PROBLEMS] if self.held else []
        codes += [ExitCode(128 + self.signal_number)] if self.signal_number else []
        return ExitCode.worst(codes)

    def as_dict(self) -> dict[str, Any]:
        """Return the document whose keys scripts rely on."""
        return {
            "schema": SCHEMA,
            "exit_code": int(self.exit_code),
            "meters": [
                {"event_name": meter.event_name, **meter.figures(), "note": meter.note} for meter in self.meters
            ],
            "held": [{name: jsonable(value) for name, value in asdict(event).items()} for event in self.held],
        }


def show_settled(document: SettleDocument, *, as_json: bool, quiet: bool, colour: bool) -> None:
    """Print what was decided, and what a person has to decide."""
    if as_json:
        print(json.dumps(document.as_dict()))
    elif not quiet:
        for meter in document.meters:
            print(f"{meter.event_name}: " + ", ".join(f"{name} {count}" for name, count in meter.figures().items()))
    for meter in document.meters:
        if meter.note:
            _say(f"meterctl: {meter.event_name}: {meter.note}")
    if document.held and not as_json:
        _show_held(document.held, colour=colour)


def _show_held(held: Sequence[HeldEvent], *, colour: bool) -> None:
    print(table(HELD_COLUMNS, [_held_row(event) for event in held], console=sys.stdout.isatty(), colour=colour))
    for reason in dict.fromkeys(event.held_reason for event in held):
        _say(f"{reason}: {REASONS.get(reason, 'held by a person')}")
    ids = " ".join(str(event.id) for event in held[:3])
    _say(
        "look for them in Stripe, then decide:\n"
        f"  meterctl settle --assume-present {ids} --reason 'how you know'   (Stripe has them: nothing is sent)\n"
        f"  meterctl settle --assume-absent {ids} --reason 'how you know'    (Stripe has them not: they are sent again)"
    )


def _held_row(event: HeldEvent) -> list[str]:
    figures = (event.value, event.stripe_total, event.accepted_total)
    read = f"{event.read_count}x" if event.read_count else None
    minute = f"{event.occurred_at:%Y-%m-%d %H:%M}"
    return [
        str(event.id),
        shown(event.customer),
        minute,
        *map(shown, figures),
        shown(read),
        shown(iso(event.last_seen)),
        event.held_reason,
    ]


def show_reads(counts: Mapping[str, int], *, as_json: bool) -> None:
    """Print how many totals a settling would read now."""
    if as_json:
        print(json.dumps({"schema": SCHEMA, "dry_run": True, "reads": dict(counts)}))
        return
    for event_name, count in counts.items():
        print(f"{event_name}: would read {count} totals of Stripe's, each of one customer and minute")


def show_assumption(events: Sequence[Mapping[str, Any]], *, present: bool) -> None:
    """Say on stderr what a person's word is about to do."""
    units = formatted(sum(event["quantity"] for event in events))
    what = "accepted without being sent" if present else "sent again, and billed twice if Stripe has them after all"
    _say(f"{len(events)} events, {units} units, would be {what}:")
    for event in events:
        _say(f"  event {event['id']}: {shown(event['quantity'])} units of {shown(event['customer'])}")


def show_assumed(done_ids: Sequence[int], asked_ids: Sequence[int], *, present: bool, as_json: bool) -> None:
    """Print what came of a person's word."""
    left = sorted(set(asked_ids) - set(done_ids))
    if as_json:
        verb = "present" if present else "absent"
        print(json.dumps({"schema": SCHEMA, verb: sorted(done_ids), "refused": left}))
        return
    what = "accepted" if present else "due again; the next report sends them, or lets those over 35 days expire"
    print(f"{len(done_ids)} events are {what}")
    for event_id in left:
        print(f"event {event_id} not taken: it changed meanwhile")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
