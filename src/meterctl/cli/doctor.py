"""`doctor`: all that a first night needs, proven before it."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterctl.cli.options import Json, Live, NoColor, Quiet
from meterctl.core.schedule import NIGHTLY, run_minutes
from meterctl.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterctl.core.diagnosis import Finding

SCHEMA = "meterctl.doctor/1"

Offline = Annotated[bool, typer.Option("--offline", help="Ask nothing of Stripe.")]
RunsAt = Annotated[
    list[str] | None,
    typer.Option(
        "--runs-at",
        help=f"When reports start, UTC: 02:00, or *:30 for every hour; may be repeated. Default: {NIGHTLY}.",
        metavar="TIME",
    ),
]


def doctor(
    context: typer.Context,
    *,
    offline: Offline = False,
    runs_at: RunsAt = None,
    live: Live = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Prove what a first night needs: settings, secrets, database, Stripe, schedule; a remedy for whatever is wrong.

    Nothing is written or billed. One thing that is broken hides no other: what rests on it is skipped, and says so.
    Exit 10 if somebody should know of something; 69, 77 or 78 if a report would end so.
    """
    from meterctl.actions.doctor import diagnose
    from meterctl.cli.doctor_checks import checks
    from meterctl.cli.doctor_settings import read
    from meterctl.cli.wiring import redacted
    from meterctl.core.diagnosis import verdict

    times = tuple(runs_at or [NIGHTLY])
    runs = _minutes(times)
    reading = read(context, live=live, no_color=no_color)
    with checks(reading, times=times, runs=runs, offline=offline) as asked:
        found = [(name, redacted(finding)) for name, finding in diagnose(asked)]
    code = verdict(finding for _, finding in found)
    _show(found, code, as_json=as_json, quiet=quiet, colour=not no_color)
    raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor")(doctor)


def _minutes(times: "Sequence[str]") -> list[int]:
    minutes: list[int] = []
    for time in times:
        read = run_minutes(time)
        if read is None:
            raise UsageError(f"{time!r} is no time of day", hint="write it like 02:00, or *:30 for every hour")
        minutes += read
    return minutes


def _show(found: "Sequence[tuple[str, Finding]]", code: ExitCode, *, as_json: bool, quiet: bool, colour: bool) -> None:
    from meterctl.render.diagnosis import shown_findings

    if as_json:
        print(json.dumps(_document(found, code)))
    elif not (quiet and code is ExitCode.OK):
        print(shown_findings("check", found, console=sys.stdout.isatty(), colour=colour))


def _document(found: "Sequence[tuple[str, Finding]]", code: ExitCode) -> dict[str, Any]:
    from meterctl.core.diagnosis import Status
    from meterctl.render.diagnosis import finding_dicts

    findings = [finding for _, finding in found]
    counts = {status.lower(): sum(one.status is status for one in findings) for status in Status}
    named = zip((name for name, _ in found), finding_dicts(findings), strict=True)
    return {
        "schema": SCHEMA,
        "exit_code": int(code),
        "counts": counts,
        "checks": [{"check": name, **finding} for name, finding in named],
    }
