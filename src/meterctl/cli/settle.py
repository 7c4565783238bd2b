"""`settle`: old doubts, decided by Stripe's totals or by a person."""

from typing import Annotated

import typer

from meterctl.cli.options import DryRun, Json, Live, Meters, NoColor, Quiet, Verbose, Yes, duration
from meterctl.errors import UsageError

Ids = Annotated[list[int] | None, typer.Argument(metavar="[EVENT_ID]...", help="With --assume-…: the held events.")]
AssumePresent = Annotated[bool, typer.Option("--assume-present", help="Stripe has these events: they are accepted.")]
AssumeAbsent = Annotated[bool, typer.Option("--assume-absent", help="Stripe has them not: they are sent again.")]
Reason = Annotated[str | None, typer.Option("--reason", help="With --assume-…: why, kept with the events.")]
ReadsMax = Annotated[int, typer.Option("--max-reads", min=1, help="Totals to read of each meter at most.")]
LockTimeout = Annotated[str, typer.Option("--lock-timeout", help="How long to wait for a run (0, 15m).")]


def settle(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    ids: Ids = None,
    *,
    assume_present: AssumePresent = False,
    assume_absent: AssumeAbsent = False,
    reason: Reason = None,
    meter: Meters = None,
    reads_max: ReadsMax = 300,
    lock_timeout: LockTimeout = "0",
    dry_run: DryRun = False,
    yes: Yes = False,
    live: Live = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_color: NoColor = False,
) -> None:
    """Decide doubts of 23 h or more by Stripe's totals, as every report does first; show what a person must decide.

    A total must be read twice, an hour apart. Where the totals do not tell, the events are held: look at the figures,
    then say `settle --assume-present ID… --reason …` or `settle --assume-absent ID… --reason …`.
    """
    from meterctl.cli.wiring import open_settings

    _require_sense(ids or [], reason, present=assume_present, absent=assume_absent)
    settings = open_settings(context, live=live, verbose=verbose, quiet=quiet, no_color=no_color)
    if ids:
        from meterctl.cli.settle_assume import Word, settle_by_word

        word = Word(
            ids=tuple(ids), present=assume_present, reason=reason or "", dry_run=dry_run, yes=yes, as_json=as_json
        )
        raise typer.Exit(settle_by_word(settings, word))
    from meterctl.cli.report import guard_mode
    from meterctl.cli.settle_run import Asked, settle_by_totals

    guard_mode(settings, require_stripe=not dry_run)
    asked = Asked(
        meters=tuple(meter or ()),
        reads_max=reads_max,
        lock_timeout_s=duration(lock_timeout).total_seconds(),
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
        colour=not no_color,
    )
    raise typer.Exit(settle_by_totals(settings, asked))


def _require_sense(ids: list[int], reason: str | None, *, present: bool, absent: bool) -> None:
    """Raise UsageError unless this is either a settling by totals or one decision on named events."""
    if present and absent:
        raise UsageError("--assume-present and --assume-absent exclude each other", hint="decide one event at a time")
    assuming = present or absent
    if assuming and not ids:
        raise UsageError("name the events to decide on", hint="`meterctl settle` lists what is held, with its ids")
    if ids and not assuming:
        raise UsageError("say what to assume of these events", hint="add --assume-present or --assume-absent")
    if assuming and not reason:
        raise UsageError("--reason is missing", hint="say how you know; it is kept with the events, for auditors")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("settle")(settle)
