"""What `reconcile` prints: what it will cost, what differs and why, and the command that mends it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meterctl.core.reconciliation import Cause, Difference
from meterctl.core.spans import Span
from meterctl.errors import ExitCode
from meterctl.render.tables import table
from meterctl.render.values import iso, shown

if TYPE_CHECKING:
    from meterctl.actions.reading_plan import ReadingPlan
    from meterctl.actions.reconcile import MeterSide

SCHEMA = "meterctl.reconcile/1"

COLUMNS = ("meter", "customer", "from", "to", "ledger", "Stripe", "cause")

SAMPLES_MAX = 5
"""Customers named at once."""

CAUSES = {
    Cause.IN_DOUBT: "Stripe has events that are in doubt here; the next reports settle them",
    Cause.HELD: "Stripe has events that are held here, for a person to decide",
    Cause.NOT_YET_CAUGHT_UP: "something was sent just now, or totals moved while being read; look again in two hours",
    Cause.CANCELLED: "Stripe still counts what is cancelled here",
    Cause.REJECTED_AFTERWARDS: "Stripe counts what is rejected or closed here: do not issue it again",
    Cause.UNKNOWN_CUSTOMER: "Stripe does not know the customer (deleted?), so it shows no totals",
    Cause.SHORTFALL: "Stripe has less than it accepted; put the minute in doubt, and the next reports settle it",
    Cause.FOREIGN_WRITER: "Stripe has more than was sent from here: look in its logs for who else sends meter events",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconcileDocument:
    """A finished comparison."""

    plan: "ReadingPlan"
    sides: "Sequence[MeterSide]"
    signal_number: int | None = None

    @property
    def differences(self) -> list[Difference]:
        """All that is not equal."""
        return [difference for side in self.sides for difference in side.differences]

    @property
    def left_count(self) -> int:
        """Customers that were not compared."""
        return sum(side.left_count for side in self.sides)

    @property
    def exit_code(self) -> ExitCode:
        """The worst of what happened; 11 while a difference is unexplained."""
        codes = [side.error.exit_code for side in self.sides if side.error is not None]
        codes += [ExitCode.DIFFERENCE for one in self.differences if not one.cause.explains]
        codes += [ExitCode(128 + self.signal_number)] if self.signal_number else []
        return ExitCode.worst(codes)

    def counts(self) -> dict[str, int]:
        """Return what the run's record keeps."""
        comparisons = [comparison for side in self.sides for comparison in side.comparisons]
        different = sum(bool(comparison.differences) for comparison in comparisons)
        return {
            "customers": len(comparisons),
            "equal": len(comparisons) - different,
            "different": different,
            "left": self.left_count,
            "reads": sum(side.read_count for side in self.sides),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the document whose keys scripts rely on."""
        return {
            "schema": SCHEMA,
            "exit_code": int(self.exit_code),
            "since": iso(self.plan.span.start),
            "until": iso(self.plan.span.end),
            "max_reads": self.plan.reads_max,
            **self.counts(),
            "meters": [_meter(side) for side in self.sides],
            "differences": [difference_dict(difference) for difference in self.differences],
        }


def _meter(side: "MeterSide") -> dict[str, Any]:
    compared = side.comparisons
    return {
        "event_name": side.event_name,
        "customers": len(compared),
        "equal": sum(not comparison.differences for comparison in compared),
        "left": side.left_count,
        "unknown": len(side.unknown),
        "reads": side.read_count,
        "ledger_total": shown(sum(comparison.ledger_total for comparison in compared)),
        "stripe_total": shown(sum(comparison.stripe_total for comparison in compared)),
        "late": side.late_count,
        "late_units": shown(side.late_units),
        "note": side.error.message if side.error is not None else None,
    }


def difference_dict(difference: Difference) -> dict[str, Any]:
    """Return a difference as our JSON documents hold it."""
    return {
        "event_name": difference.event_name,
        "customer": difference.customer,
        "start": iso(difference.span.start),
        "end": iso(difference.span.end),
        "ledger_total": shown(difference.ledger_total),
        "stripe_total": shown(difference.stripe_total),
        "cause": difference.cause.value,
        "explained": difference.cause.explains,
        "command": difference.command,
    }


def show_plan(plan: "ReadingPlan", *, meter_count: int) -> None:
    """Say on stderr what reading costs, before anything is read."""
    _say(
        f"meterctl: {_range(plan.span)}: {len(plan.chosen)} customers of {meter_count} meters, "
        f"{plan.read_count} reads of Stripe's totals by day, and at most {plan.reads_max - plan.read_count} more "
        f"to narrow differences (--max-reads {plan.reads_max})"
    )
    if plan.left:
        needed = (len(plan.chosen) + len(plan.left)) * plan.reads_each
        _say(f"meterctl: {len(plan.left)} customers are left for another run; all would cost {needed} reads")


def show_reconciled(document: ReconcileDocument, *, as_json: bool, quiet: bool, colour: bool) -> None:
    """Print what differs and how much is equal."""
    if as_json:
        print(json.dumps(document.as_dict()))
    elif not (quiet and document.exit_code is ExitCode.OK):
        _show_differences(document.differences, colour=colour)
        counts = document.counts()
        print(f"{_range(document.plan.span)}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        for side in document.sides:
            if side.late_count:
                late = f"{side.late_count} late events, {shown(side.late_units)} units"
                print(f"{side.event_name}: {late}, are in Stripe's totals but on no invoice")
            if side.unknown:
                names = ", ".join(map(shown, side.unknown[:SAMPLES_MAX]))
                print(f"{side.event_name}: Stripe does not know {len(side.unknown)} customers (e.g. {names})")
    for side in document.sides:
        if side.error is not None:
            _say(f"meterctl: {side.event_name}: {side.error.message}")
            if side.error.hint:
                _say(f"  hint: {side.error.hint}")


def _show_differences(differences: Sequence[Difference], *, colour: bool) -> None:
    if differences and sys.stdout.isatty():
        print(table(COLUMNS, [_row(difference) for difference in differences], console=True, colour=colour))
    elif differences:
        print("\n".join(_line(difference) for difference in differences))
    for cause in dict.fromkeys(difference.cause for difference in differences):
        _say(f"{cause}: {CAUSES[cause]}")
    for command in dict.fromkeys(difference.command for difference in differences if difference.command):
        _say(f"  {shown(command)}")


def _row(difference: Difference) -> list[str]:
    span = difference.span
    return [
        *map(shown, (difference.event_name, difference.customer)),
        f"{span.start:%Y-%m-%d %H:%M}",
        f"{span.end:%Y-%m-%d %H:%M}",
        *map(shown, (difference.ledger_total, difference.stripe_total)),
        difference.cause.value,
    ]


def _line(difference: Difference) -> str:
    where = f"{shown(difference.event_name)} {shown(difference.customer)} {_range(difference.span)}"
    totals = f"ledger {shown(difference.ledger_total)}, Stripe {shown(difference.stripe_total)}"
    return f"{where}: {totals}: {difference.cause.value}"


def _range(span: Span) -> str:
    return f"{span.start:%Y-%m-%dT%H:%MZ}/{span.end:%Y-%m-%dT%H:%MZ}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
