"""`report`, `report-usage`, `report-sensors` and `report-readings`: what cron runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from meterctl.cli.options import instant
from meterctl.cli.run_options import Asked, RunOptions, report_options, with_run_options
from meterctl.core.level import LevelRequest
from meterctl.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from decimal import Decimal

    from meterctl.settings import Settings

Recent = Annotated[str | None, typer.Option("--recent", help="Only usage this young (2d), for frequent runs.")]
Rows = Annotated[list[str] | None, typer.Option("--row", help="Only the usage row with this id; may be repeated.")]
At = Annotated[
    str | None,
    typer.Option("--at", help="Report the levels for this instant of the last 35 days.", metavar="INSTANT"),
]
Subject = Annotated[
    str | None, typer.Option("--subject", help="Only this subject's customer, with the level of --value.", metavar="ID")
]
Value = Annotated[str | None, typer.Option("--value", help="The subject's level, instead of what its table says.")]
Force = Annotated[bool, typer.Option("--force", help="With --at: even behind a newer level of the same period.")]
AcceptZeros = Annotated[
    bool, typer.Option("--accept-zeros", help="Send the zeros even if more than half of all levels fall to 0 at once.")
]
IncludeOpenWindow = Annotated[
    bool, typer.Option("--include-open-window", help="Also what was recorded in the hour that is not over.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, command in {
        "report": report,
        "report-usage": report_usage,
        "report-sensors": report_sensors,
        "report-readings": report_readings,
    }.items():
        app.command(name)(command)


@with_run_options
def report(context: typer.Context, run: RunOptions, *, row: Rows = None, recent: Recent = None) -> None:
    """Report all enabled meters: settle, collect, deliver."""
    options = report_options(run, recent=recent, rows=row)
    raise typer.Exit(_report(context, Asked(command="report", options=options, run=run)))


@with_run_options
def report_usage(context: typer.Context, run: RunOptions, *, row: Rows = None, recent: Recent = None) -> None:
    """Report the meters whose usage is rows, each billed once."""
    options = report_options(run, recent=recent, rows=row)
    raise typer.Exit(_report(context, Asked(command="report-usage", options=options, run=run, source="rows")))


@with_run_options
def report_sensors(
    context: typer.Context,
    run: RunOptions,
    *,
    at: At = None,
    subject: Subject = None,
    value: Value = None,
    force: Force = False,
    accept_zeros: AcceptZeros = False,
) -> None:
    """Report levels: one for each customer and step, zero included; the same step again is the same event."""
    level = LevelRequest(
        at=instant(at) if at is not None else None,
        subject=subject,
        level=_level(subject, value),
        insisted=force,
        accept_zeros=accept_zeros,
    )
    options = report_options(run)
    asked = Asked(command="report-sensors", options=options, run=run, source="gauge", level=level)
    raise typer.Exit(_report(context, asked))


def _level(subject: str | None, value: str | None) -> "Decimal | None":
    from meterctl.core.value import level

    if (subject is None) != (value is None):
        raise UsageError("--subject and --value belong together", hint="say whose level it is, and what it is")
    return level(value) if value is not None else None


@with_run_options
def report_readings(context: typer.Context, run: RunOptions, *, include_open_window: IncludeOpenWindow = False) -> None:
    """Report recorded volumes: one event for each subject and closed hour, cut where a billing period ends."""
    options = report_options(run)
    asked = Asked(command="report-readings", options=options, run=run, source="counter", open_too=include_open_window)
    raise typer.Exit(_report(context, asked))


def _report(context: typer.Context, asked: Asked) -> int:
    from meterctl.cli.job_retries import with_job_retries
    from meterctl.cli.report_run import Job, dry_run, real_run, tell
    from meterctl.cli.wiring import open_settings
    from meterctl.core.allowance import Allowance

    run = asked.run
    settings = open_settings(context, live=run.live, verbose=run.verbose, quiet=run.quiet, no_color=run.no_color)
    keys = chosen_meters(settings, asked)
    if asked.level.subject is not None and len(keys) > 1:
        raise UsageError("--value is the level of one meter", hint=f"add --meter, one of: {', '.join(keys)}")
    guard_mode(settings, require_stripe=run.require_stripe)
    configured = settings.stripe.api_key is not None
    if run.dry_run or not configured:
        return dry_run(settings, keys, asked, unsent=not configured)
    job = Job(allowance=Allowance(asked.options.limit))
    document = with_job_retries(
        lambda: real_run(settings, keys, asked, job), retries=run.job_retries, delay=asked.job_retry_delay
    )
    tell(document, settings, asked)
    return document.exit_code


def chosen_meters(settings: "Settings", asked: Asked) -> list[str]:
    """Return the configuration keys of the meters to report. Raises ConfigurationError or UsageError naming the key."""
    keys = meters_called(settings, asked.meters)
    if asked.source is None:
        return keys
    others = [key for key in keys if settings.meters[key].source != asked.source]
    if others and asked.meters:
        raise UsageError(
            f'{asked.command} is for meters of source = "{asked.source}", which {", ".join(others)} is not',
            hint="`meterctl report --meter …` takes any",
        )
    if len(others) == len(keys):
        raise ConfigurationError(
            f'no meter of source = "{asked.source}" is enabled',
            hint="enable one under [meters.…] in the configuration",
        )
    return [key for key in keys if key not in others]


def meters_called(settings: "Settings", names: tuple[str, ...]) -> list[str]:
    """Return the configuration keys of the enabled meters of these names, of all by default. Raises as above."""
    enabled = settings.enabled_meters
    by_name = {meter.event_name: key for key, meter in enabled.items()} | {key: key for key in enabled}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise UsageError(
            f"no enabled meter is called {', '.join(unknown)}", hint=f"enabled: {', '.join(enabled) or 'none'}"
        )
    if not enabled:
        raise ConfigurationError("no meter is enabled", hint="enable one under [meters.…] in the configuration")
    return list(dict.fromkeys(by_name[name] for name in names)) or list(enabled)


def guard_mode(settings: "Settings", *, require_stripe: bool) -> None:
    """Live must be meant, and test must not be mistaken for it: intent and key agree, or nothing starts."""
    key_mode, mode = settings.stripe.key_mode, settings.stripe.mode
    if key_mode is None and require_stripe:
        raise ConfigurationError("no Stripe key is set", hint="set STRIPE_SECRET_KEY or STRIPE_SECRET_KEY_FILE")
    if key_mode == "live" and mode == "test":
        raise ConfigurationError(
            "the key is a live-mode key, but live mode was not asked for", hint='add --live, or stripe.mode = "live"'
        )
    if key_mode == "test" and mode == "live":
        raise ConfigurationError(
            "live mode was asked for, but the key is a test-mode key", hint="use the live key, or leave out --live"
        )
