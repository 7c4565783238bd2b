"""`report` and `report-usage`: the nightly job."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from meterctl.cli.options import DryRun, Json, Live, Meters, NoColor, Quiet, Verbose, duration
from meterctl.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from meterctl.actions.report import ReportOptions
    from meterctl.settings import Settings

Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Deliver at most so many events.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=10_000, help="Rows collected in one transaction.")]
MaxDuration = Annotated[str, typer.Option("--max-duration", help="Stop starting work after this time (90s, 15m, 3h).")]
LockTimeout = Annotated[str, typer.Option("--lock-timeout", help="How long to wait for another run (0, 15m).")]
Recent = Annotated[str | None, typer.Option("--recent", help="Only usage this young (2d), for frequent runs.")]
Rows = Annotated[list[str] | None, typer.Option("--row", help="Only the usage row with this id; may be repeated.")]
JobRetries = Annotated[
    int,
    typer.Option(
        "--job-retries", min=0, max=10, help="Run the job again while Stripe, PostgreSQL or the lock is away."
    ),
]
JobRetryDelay = Annotated[int, typer.Option("--job-retry-delay", min=0, help="Seconds before the first; doubles.")]
RequireStripe = Annotated[bool, typer.Option("--require-stripe", help="Fail (78) if no Stripe key is configured.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line of a report, parsed."""

    command: str
    options: "ReportOptions"
    meters: tuple[str, ...]
    dry_run: bool
    as_json: bool
    quiet: bool
    verbose: bool
    no_color: bool
    live: bool
    require_stripe: bool
    job_retries: int
    job_retry_delay: timedelta


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("report", help="Report all enabled meters: settle, collect, deliver.")(_command("report"))
    app.command("report-usage", help="Report the meters whose usage is rows, each billed once.")(
        _command("report-usage")
    )


def _command(name: str) -> Callable[..., None]:
    def report(  # noqa: PLR0913 -- one parameter for each option; Typer's way
        context: typer.Context,
        *,
        dry_run: DryRun = False,
        meter: Meters = None,
        row: Rows = None,
        limit: Limit = None,
        batch_size: BatchSize = 500,
        max_duration: MaxDuration = "3h",
        lock_timeout: LockTimeout = "0",
        recent: Recent = None,
        job_retries: JobRetries = 0,
        job_retry_delay: JobRetryDelay = 60,
        require_stripe: RequireStripe = False,
        live: Live = False,
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
        no_color: NoColor = False,
    ) -> None:
        from meterctl.actions.report import ReportOptions

        options = ReportOptions(
            batch_size=batch_size,
            limit=limit,
            max_duration=duration(max_duration),
            lock_timeout_s=duration(lock_timeout).total_seconds(),
            recent=duration(recent) if recent is not None else None,
            row_ids=tuple(row or ()),
        )
        asked = Asked(
            command=name,
            options=options,
            meters=tuple(meter or ()),
            dry_run=dry_run,
            as_json=as_json,
            quiet=quiet,
            verbose=verbose,
            no_color=no_color,
            live=live,
            require_stripe=require_stripe,
            job_retries=job_retries,
            job_retry_delay=timedelta(seconds=job_retry_delay),
        )
        raise typer.Exit(_report(context, asked))

    return report


def _report(context: typer.Context, asked: Asked) -> int:
    from meterctl.cli.job_retries import with_job_retries
    from meterctl.cli.report_run import Job, dry_run, real_run, tell
    from meterctl.cli.wiring import open_settings
    from meterctl.core.allowance import Allowance

    flags = {"stripe.mode": "live"} if asked.live else {}
    settings = open_settings(context, flags=flags, verbose=asked.verbose, quiet=asked.quiet, no_color=asked.no_color)
    keys = chosen_meters(settings, asked)
    guard_mode(settings, require_stripe=asked.require_stripe)
    configured = settings.stripe.api_key is not None
    if asked.dry_run or not configured:
        return dry_run(settings, keys, asked, unsent=not configured)
    job = Job(allowance=Allowance(asked.options.limit))
    document = with_job_retries(
        lambda: real_run(settings, keys, asked, job), retries=asked.job_retries, delay=asked.job_retry_delay
    )
    tell(document, settings, asked)
    return document.exit_code


def chosen_meters(settings: "Settings", asked: Asked) -> list[str]:
    """Return the configuration keys of the meters to report. Raises ConfigurationError or UsageError naming the key."""
    if asked.command == "report-usage" and not asked.meters:
        return _reportable(settings, [key for key, meter in settings.enabled_meters.items() if meter.source == "rows"])
    return meters_called(settings, asked.meters)


def meters_called(settings: "Settings", names: tuple[str, ...]) -> list[str]:
    """Return the configuration keys of the enabled meters of these names, of all by default. Raises as above."""
    enabled = settings.enabled_meters
    by_name = {meter.event_name: key for key, meter in enabled.items()} | {key: key for key in enabled}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise UsageError(
            f"no enabled meter is called {', '.join(unknown)}", hint=f"enabled: {', '.join(enabled) or 'none'}"
        )
    return _reportable(settings, [by_name[name] for name in names] or list(enabled))


def _reportable(settings: "Settings", keys: list[str]) -> list[str]:
    refused = tuple(
        f'{settings.where(f"meters.{key}.source")}: "{settings.meters[key].source}" meters cannot be reported yet; '
        "set enabled = false"
        for key in keys
        if settings.meters[key].source != "rows"
    )
    if refused:
        raise ConfigurationError("the configuration asks for what this version cannot do", problems=refused)
    if not keys:
        raise ConfigurationError("no meter is enabled", hint="enable one under [meters.…] in the configuration")
    return list(dict.fromkeys(keys))


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
