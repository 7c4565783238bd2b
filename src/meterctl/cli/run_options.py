"""The options that all reports share, declared once; a command takes them as one value."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from meterctl.cli.options import DryRun, Json, Live, Meters, NoColor, Quiet, Verbose, duration
from meterctl.core.level import LevelRequest

if TYPE_CHECKING:
    from meterctl.actions.meter_report import ReportOptions

Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Deliver at most so many events.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=10_000, help="Rows collected in one transaction.")]
MaxDuration = Annotated[str, typer.Option("--max-duration", help="Stop starting work after this time (90s, 15m, 3h).")]
LockTimeout = Annotated[str, typer.Option("--lock-timeout", help="How long to wait for another run (0, 15m).")]
JobRetries = Annotated[
    int,
    typer.Option(
        "--job-retries", min=0, max=10, help="Run the job again while Stripe, PostgreSQL or the lock is away."
    ),
]
JobRetryDelay = Annotated[int, typer.Option("--job-retry-delay", min=0, help="Seconds before the first; doubles.")]
RequireStripe = Annotated[bool, typer.Option("--require-stripe", help="Fail (78) if no Stripe key is configured.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Each field is an option of every report."""

    dry_run: DryRun = False
    meter: Meters = None
    limit: Limit = None
    batch_size: BatchSize = 500
    max_duration: MaxDuration = "3h"
    lock_timeout: LockTimeout = "0"
    job_retries: JobRetries = 0
    job_retry_delay: JobRetryDelay = 60
    require_stripe: RequireStripe = False
    live: Live = False
    as_json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False
    no_color: NoColor = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line of a report, parsed. `source` None: meters of any."""

    command: str
    options: "ReportOptions"
    run: RunOptions
    source: str | None = None
    level: LevelRequest = field(default_factory=LevelRequest)
    open_too: bool = False

    @property
    def meters(self) -> tuple[str, ...]:
        """The meters that were named."""
        return tuple(self.run.meter or ())

    @property
    def job_retry_delay(self) -> timedelta:
        """How long to wait before the first retry of the job."""
        return timedelta(seconds=self.run.job_retry_delay)


def report_options(run: RunOptions, *, recent: str | None = None, rows: list[str] | None = None) -> "ReportOptions":
    """Return the options as the report takes them. Raises UsageError for what is no duration."""
    from meterctl.actions.meter_report import ReportOptions

    return ReportOptions(
        batch_size=run.batch_size,
        limit=run.limit,
        max_duration=duration(run.max_duration),
        lock_timeout_s=duration(run.lock_timeout).total_seconds(),
        recent=duration(recent) if recent is not None else None,
        row_ids=tuple(rows or ()),
    )


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command (context, run, *, its own options) the fields of RunOptions as options on its command line."""
    context, _, *own = inspect.signature(command).parameters.values()
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(RunOptions)
    ]

    def with_options(context: typer.Context, **given: Any) -> None:  # noqa: ANN401 -- Typer has checked them
        run = RunOptions(**{one.name: given.pop(one.name) for one in fields(RunOptions)})
        command(context, run, **given)

    parameters = [context, *own, *shared]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what inspect looks for first
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    with_options.__doc__ = command.__doc__
    return with_options
