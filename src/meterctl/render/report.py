"""What a report prints: one JSON document, a table on a terminal, one line without; under -q nothing if all is well."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from meterctl.actions.preview import Plan
from meterctl.actions.tally import Tally
from meterctl.core.value import formatted
from meterctl.errors import ExitCode

SCHEMA = "meterctl.report/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportDocument:
    """A finished run, ready to be told."""

    command: str
    mode: str
    dry_run: bool
    started_at: datetime
    run_id: int | None
    exit_code: ExitCode
    tallies: Sequence[Tally]
    totals: Tally
    notes: Sequence[str] = field(default=())
    plan: Sequence[Mapping[str, object]] | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the document whose keys scripts rely on."""
        return {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "command": self.command,
            "mode": self.mode,
            "dry_run": self.dry_run,
            "started_at": _iso(self.started_at),
            "finished_at": _iso(datetime.now(UTC)),
            "exit_code": int(self.exit_code),
            "totals": self.totals.figures(),
            "meters": [{"event_name": tally.event_name, **tally.figures()} for tally in self.tallies],
            "problems": [
                {"code": p.code, "count": p.count, "sample_ids": p.sample_ids, "hint": p.hint}
                for p in self.totals.problems.values()
            ],
            **({"plan": self.plan} if self.plan is not None else {}),
        }


def _iso(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_report(document: ReportDocument, *, as_json: bool, quiet: bool, colour: bool = True) -> None:
    """Print a run's result: data on stdout, what needs a person on stderr."""
    if as_json:
        print(json.dumps(document.as_dict()))
    elif not quiet:
        _show_counts(document, colour=colour)
    _show_problems(document)


def _show_counts(document: ReportDocument, *, colour: bool) -> None:
    if not sys.stdout.isatty():
        print(one_line(document.command, document.totals))
        return
    from meterctl.render.tables import table  # noqa: PLC0415 -- only a terminal needs it

    figures = document.totals.figures()
    rows = [[t.event_name, *(str(t.figures()[name]) for name in figures)] for t in document.tallies]
    print(table(["meter", *figures], rows, console=True, colour=colour))


def one_line(command: str, total: Tally) -> str:
    """Return the run's summary line: what a log keeps."""
    shown = {name: value for name, value in total.figures().items() if value or name in {"total", "reported", "units"}}
    return f"{command}: " + ", ".join(f"{name} {value}" for name, value in shown.items())


def _show_problems(document: ReportDocument) -> None:
    for note in document.notes:
        print(f"meterctl: {note}", file=sys.stderr)
    for problem in document.totals.problems.values():
        samples = f" (e.g. {', '.join(problem.sample_ids)})" if problem.sample_ids else ""
        print(f"meterctl: {problem.count} {problem.code}{samples}\n  hint: {problem.hint}", file=sys.stderr)


def show_plan(
    document: ReportDocument, plans: Sequence[Plan], *, rate_per_s: float | None, as_json: bool, quiet: bool
) -> None:
    """Print what a report would do."""
    if as_json:
        print(json.dumps(replace(document, plan=[plan_dict(plan, rate_per_s) for plan in plans]).as_dict()))
    elif not quiet:
        for plan in plans:
            print(*plan_lines(plan, rate_per_s), sep="\n")


def plan_dict(plan: Plan, rate_per_s: float | None) -> dict[str, object]:
    """Return a meter's plan as `--json` has it."""
    return {
        "event_name": plan.event_name,
        "events": plan.events,
        "units": formatted(plan.units),
        "customers": plan.customers,
        "oldest": _iso(plan.oldest) if plan.oldest else None,
        "before_since": plan.before_since,
        "calls": plan.events,
        "minutes": plan.minutes(rate_per_s),
    }


def plan_lines(plan: Plan, rate_per_s: float | None) -> Iterator[str]:
    """Yield a meter's plan as a person reads it."""
    minutes = plan.minutes(rate_per_s)
    pace = f", about {minutes} min at {rate_per_s:.0f} calls/s" if minutes is not None else ""
    yield (
        f"{plan.event_name}: would send {plan.events} events, {formatted(plan.units)} units, {plan.customers} customers"
        f"; oldest {_iso_or_dash(plan.oldest)}; {plan.events} calls{pace}"
    )
    tally = plan.tally
    if tally.skipped:
        yield f"  skipped: {tally.skipped} rows without a subscription at their instant"
    if plan.before_since:
        yield f"  not this meter's: {plan.before_since} unreported rows before its `since`"
    for problem in tally.problems.values():
        samples = f" (e.g. {', '.join(problem.sample_ids)})" if problem.sample_ids else ""
        yield f"  {problem.code}: {problem.count}{samples}"


def _iso_or_dash(instant: datetime | None) -> str:
    return _iso(instant) if instant else "-"
