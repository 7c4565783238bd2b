"""`summary` and `runs`: how things stand, read from the ledger alone."""

import json
import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterctl.cli.options import Json, Meters, NoColor, Quiet, duration
from meterctl.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterctl.ports import Backlog
    from meterctl.postgres.connect import Connection
    from meterctl.postgres.summary import MeterFigures, Run
    from meterctl.settings import Settings

SUMMARY_SCHEMA, RUNS_SCHEMA = "meterctl.summary/1", "meterctl.runs/1"

MaxAge = Annotated[
    str | None, typer.Option("--max-age", help="Exit 11 if the last good run is older than this (26h): a stopped cron.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("summary")(summary)
    app.command("runs")(runs)


def summary(
    context: typer.Context,
    *,
    meter: Meters = None,
    max_age: MaxAge = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Show what is unreported, open, held, rejected, expired, late; exit 10 while a person is needed.

    Accepted and late events are those of the last 35 days: what was late before that is a problem no more. Unreported
    are the rows of the look-back that have no event yet; rows of free users never get one and are among them.
    """
    from meterctl.cli.wiring import open_database, open_settings

    age_max = duration(max_age) if max_age else None
    settings = open_settings(context, quiet=quiet, no_color=no_color)
    with open_database(settings) as connection:
        document = _document(connection, settings, tuple(meter or ()), age_max)
    code = ExitCode(document["exit_code"])
    if as_json:
        print(json.dumps(document))
    elif not (quiet and code is ExitCode.OK):
        _show(document, colour=not no_color)
    raise typer.Exit(code)


def _document(
    connection: "Connection", settings: "Settings", wanted: tuple[str, ...], age_max: timedelta | None
) -> dict[str, Any]:
    from meterctl.cli.summary_problems import open_problems
    from meterctl.clock import SystemHostClock
    from meterctl.postgres.clock import PostgresClock
    from meterctl.postgres.summary import last_good_run, latest_runs, ledger_owner, meter_figures
    from meterctl.render.values import iso, jsonable

    now = PostgresClock(connection, SystemHostClock()).now()
    only = _names(settings, wanted)
    figures = _chosen(meter_figures(connection, now, _unreported(connection, settings, now, only)), settings, only)
    problems = open_problems(connection, settings, now, figures, only)
    good = last_good_run(connection)
    too_old = age_max is not None and (good is None or now - good > age_max)
    owner, last = ledger_owner(connection), latest_runs(connection, 1)
    return {
        "schema": SUMMARY_SCHEMA,
        "at": iso(now),
        "account": owner[0] if owner else None,
        "mode": {None: None, True: "live", False: "test"}[owner[1] if owner else None],
        "exit_code": int(_code(too_old=too_old, problems=bool(problems))),
        "last_run": run_dict(last[0]) if last else None,
        "last_good_run_at": iso(good),
        "too_old": too_old,
        "meters": [{name: jsonable(value) for name, value in asdict(figure).items()} for figure in figures],
        "problems": [{"event_name": name, **asdict(problem)} for name, problem in problems],
    }


def _code(*, too_old: bool, problems: bool) -> ExitCode:
    codes = [ExitCode.DIFFERENCE] if too_old else []
    return ExitCode.worst([*codes, ExitCode.PROBLEMS] if problems else codes)


def _names(settings: "Settings", wanted: tuple[str, ...]) -> list[str]:
    return [settings.meters[name].event_name if name in settings.meters else name for name in wanted]


def _chosen(figures: "Sequence[MeterFigures]", settings: "Settings", only: "Sequence[str]") -> "list[MeterFigures]":
    """Return the figures of the meters asked for, by default of all that are enabled or in the ledger."""
    from meterctl.postgres.summary import MeterFigures

    found = {figure.event_name: figure for figure in figures}
    configured = {meter.event_name for meter in settings.meters.values()}
    unknown = [name for name in only if name not in configured | set(found)]
    if unknown:
        known = ", ".join(sorted(configured | set(found)))
        raise UsageError(f"no meter is called {', '.join(unknown)}", hint=f"configured or in the ledger: {known}")
    names = set(only) or {meter.event_name for meter in settings.enabled_meters.values()} | set(found)
    return [found.get(name) or MeterFigures(event_name=name) for name in sorted(names)]


def _unreported(
    connection: "Connection", settings: "Settings", now: datetime, only: "Sequence[str]"
) -> "dict[str, Backlog]":
    from meterctl.actions.collect import row_window
    from meterctl.postgres.check import require_fit
    from meterctl.postgres.sources import Sources

    meters = settings.enabled_meters
    keys = [key for key, meter in meters.items() if not only or meter.event_name in only]
    require_fit(connection, settings, keys)
    sources, window = Sources(connection=connection, settings=settings), row_window(now, recent=None)
    found = {meters[key].event_name: sources.of(key).backlog(window) for key in keys}
    return {name: backlog for name, backlog in found.items() if backlog is not None}


def run_dict(run: "Run") -> dict[str, Any]:
    """Return a run as our JSON documents hold it."""
    from meterctl.render.values import jsonable

    fields = {name: jsonable(value) for name, value in asdict(run).items() if name != "alive"}
    return fields | {"outcome": run.outcome}


SHOWN = (
    "unreported",
    "pending",
    "in_doubt",
    "held",
    "rejected",
    "expired",
    "late",
    "accepted",
    "accepted_units",
    "oldest_open",
    "proven_up_to",
)


def _show(document: dict[str, Any], *, colour: bool) -> None:
    from meterctl.render.tables import table
    from meterctl.render.values import shown

    print(f"ledger: account {shown(document['account'])}, {shown(document['mode'])} mode; {document['at']}")
    last = document["last_run"]
    ran = f"{last['command']} at {last['started_at']}, exit {last['outcome']}" if last else "none yet"
    print(f"last run: {ran}; last good one ended {shown(document['last_good_run_at'])}")
    if document["too_old"]:
        print("TOO OLD: no good run within --max-age; is cron running?")
    lines = [["meter", *(name.replace("_", " ") for name in SHOWN)]]
    lines += [[shown(meter[name]) for name in ("event_name", *SHOWN)] for meter in document["meters"]]
    if console := sys.stdout.isatty():  # a column for each meter: it fits the eighty columns of a terminal
        lines = [list(line) for line in zip(*lines, strict=True)]
    print(table(lines[0], lines[1:], console=console, colour=colour))
    for meter in document["meters"]:
        _show_remarks(meter)
    for problem in document["problems"]:
        samples = f" (e.g. {', '.join(problem['sample_ids'])})" if problem["sample_ids"] else ""
        print(f"{problem['event_name']}: {problem['count']} {problem['code']}{samples}\n  {problem['hint']}")


def _show_remarks(meter: dict[str, Any]) -> None:
    name = meter["event_name"]
    if meter["unreported"]:
        print(f"{name}: oldest unreported row {meter['oldest_unreported']}; rows of free users are among them")
    if meter["held_by_age"]:
        print(f"{name}: {meter['held_by_age']} in doubt that only Stripe's totals decide (`meterctl settle`)")


def runs(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 20,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Show the latest runs, newest first."""
    from meterctl.cli.wiring import open_database, open_settings
    from meterctl.postgres.summary import latest_runs

    settings = open_settings(context, no_color=no_color)
    with open_database(settings) as connection:
        found = latest_runs(connection, limit)
    if as_json:
        print(json.dumps({"schema": RUNS_SCHEMA, "runs": [run_dict(run) for run in found]}))
    else:
        _show_runs(found, colour=not no_color)


def _show_runs(found: "Sequence[Run]", *, colour: bool) -> None:
    from meterctl.render.tables import table
    from meterctl.render.values import shown, span

    rows = [
        [
            str(run.id),
            run.command,
            run.mode,
            shown(run.started_at),
            span(run.finished_at - run.started_at) if run.finished_at else "-",
            run.outcome,
            _meaning(run.exit_code),
            shown((run.counts or {}).get("reported")),
            shown((run.counts or {}).get("units")),
        ]
        for run in found
    ]
    heads = ["run", "command", "mode", "started", "took", "exit", "meaning", "reported", "units"]
    print(table(heads, rows, console=sys.stdout.isatty(), colour=colour) if rows else "no runs yet")


def _meaning(code: int | None) -> str:
    """Return an exit code's meaning; a newer meterctl on the same ledger may have codes that this one does not know."""
    return next((known.meaning for known in ExitCode if known == code), "")
