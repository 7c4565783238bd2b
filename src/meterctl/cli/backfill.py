"""`backfill`: a past span of one meter, shown, agreed to, then reported."""

from typing import Annotated

import typer

from meterctl.cli.options import Confirm, DryRun, Json, Live, NoColor, Quiet, Verbose, Yes, instant
from meterctl.cli.run_options import LockTimeout, MaxDuration, RunOptions

OneMeter = Annotated[str, typer.Option("--meter", help="The meter.", metavar="NAME")]
Since = Annotated[str, typer.Option("--since", help="Usage from this instant on.", metavar="INSTANT")]
Until = Annotated[str, typer.Option("--until", help="Usage before this instant, which is past.", metavar="INSTANT")]
BeforeCutOver = Annotated[
    bool, typer.Option("--before-cut-over", help="Also usage before the meter's `since`, which nobody else has billed.")
]


def backfill(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    *,
    meter: OneMeter,
    since: Since,
    until: Until,
    before_cut_over: BeforeCutOver = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    confirm: Confirm = None,
    live: Live = False,
    max_duration: MaxDuration = "3h",
    lock_timeout: LockTimeout = "0",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_color: NoColor = False,
) -> None:
    """Report what a meter's past span still lacks: shown first, sent when agreed to, restartable.

    Only usage of the span is collected and delivered; what waits outside of it goes on waiting.

    Rows: each that is not reported, and not older than 35 days. Counters: what was recorded in hours that are over.
    Gauges: a table knows its levels of now only, so these are sent, for the last step of the span and for each customer
    without a level in the span.
    """
    from meterctl.cli.backfill_run import BackfillAsked, run_backfill
    from meterctl.cli.report import guard_mode, meters_called
    from meterctl.cli.wiring import open_settings
    from meterctl.core.scope import UsageSpan

    run = RunOptions(
        dry_run=dry_run,
        meter=[meter],
        max_duration=max_duration,
        lock_timeout=lock_timeout,
        live=live,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
        no_color=no_color,
    )
    span = UsageSpan(since=instant(since), until=instant(until))
    settings = open_settings(context, live=live, verbose=verbose, quiet=quiet, no_color=no_color)
    (key,) = meters_called(settings, (meter,))
    guard_mode(settings, require_stripe=False)
    asked = BackfillAsked(key=key, span=span, before_cut_over=before_cut_over, yes=yes, confirm=confirm, run=run)
    raise typer.Exit(run_backfill(settings, asked))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("backfill")(backfill)
