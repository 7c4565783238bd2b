"""`webhooks …`: read Stripe's events without an endpoint, act on them, look at them, verify them."""

from typing import TYPE_CHECKING, Annotated

import typer

from meterctl.cli.options import DryRun, Json, Live, NoColor, Quiet, Verbose, Yes, instant
from meterctl.cli.webhooks_verify import verify_webhook
from meterctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from meterctl.postgres.stripe_events import EventSelection

app = typer.Typer(help="Stripe's events: verify, pull, replay and show them.", no_args_is_help=True)
app.command("verify")(verify_webhook)

Types = Annotated[
    list[str] | None,
    typer.Option("--types", help="Only these types; separated by commas, or repeated.", metavar="T,T…"),
]
PullSince = Annotated[
    str | None, typer.Option("--since", help="Read from this instant, not from the cursor.", metavar="INSTANT")
]
EventIds = Annotated[list[str] | None, typer.Argument(help="Ids of stored events.", metavar="[EVENT_ID]...")]
File = Annotated[
    str | None, typer.Option("--file", help="Store and replay events of this file, one a line.", metavar="F.jsonl|-")
]
Type = Annotated[list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")]
Since = Annotated[str | None, typer.Option("--since", help="Created at or after this instant.", metavar="INSTANT")]
Until = Annotated[str | None, typer.Option("--until", help="Created before this instant.", metavar="INSTANT")]
Failed = Annotated[bool, typer.Option("--failed", help="Only events that failed.")]
Force = Annotated[bool, typer.Option("--force", help="Also what was acted on before; asks first.")]
Statuses = Annotated[list[str] | None, typer.Option("--status", help="Only this status; may be repeated.")]
STATUSES = ("received", "processed", "failed", "ignored")


@app.command("pull")
def pull(
    context: typer.Context,
    *,
    types: Types = None,
    since: PullSince = None,
    live: Live = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_color: NoColor = False,
) -> None:
    """Read Stripe's lists of events since the last pull, and act on all that is stored and waits."""
    from meterctl.cli.report import guard_mode
    from meterctl.cli.webhooks_run import PullAsked, pull_events
    from meterctl.cli.wiring import open_settings

    settings = open_settings(context, live=live, verbose=verbose, quiet=quiet, no_color=no_color)
    guard_mode(settings, require_stripe=False)
    chosen = tuple(one.strip() for text in types or () for one in text.split(",") if one.strip())
    asked = PullAsked(types=chosen, since=instant(since) if since else None, as_json=as_json, quiet=quiet)
    raise typer.Exit(pull_events(settings, asked))


@app.command("replay")
def replay(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    ids: EventIds = None,
    *,
    file: File = None,
    failed: Failed = False,
    types: Type = None,
    since: Since = None,
    until: Until = None,
    force: Force = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    live: Live = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_color: NoColor = False,
) -> None:
    """Act on stored events, oldest first; by default on those that wait or failed. Each says what became of it."""
    from meterctl.cli.webhooks_replay import ReplayAsked, replay_events
    from meterctl.cli.wiring import open_settings

    if file is not None and (ids or failed):
        raise UsageError("--file says which events", hint="leave out the ids, and --failed")
    settings = open_settings(context, live=live, verbose=verbose, quiet=quiet, no_color=no_color)
    chosen = bool(ids or types or since or until or file)
    statuses = ("failed",) if failed else () if chosen else ("received", "failed")
    asked = ReplayAsked(
        selection=_selection(ids, statuses, types, since, until),
        file=file,
        force=force,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
        quiet=quiet,
    )
    raise typer.Exit(replay_events(settings, asked))


def _selection(
    ids: list[str] | None,
    statuses: tuple[str, ...],
    types: list[str] | None,
    since: str | None,
    until: str | None,
) -> "EventSelection":
    from meterctl.postgres.stripe_events import EventSelection

    return EventSelection(
        ids=tuple(ids or ()),
        statuses=statuses,
        types=tuple(types or ()),
        since=instant(since) if since else None,
        until=instant(until) if until else None,
    )


@app.command("list")
def list_events(
    context: typer.Context,
    *,
    status: Statuses = None,
    types: Type = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """List stored events, newest first."""
    from meterctl.cli.wiring import open_database, open_settings
    from meterctl.postgres.stripe_events import event_store
    from meterctl.render.webhooks import show_list

    unknown = sorted(set(status or ()) - set(STATUSES))
    if unknown:
        raise UsageError(f"no status is called {', '.join(unknown)}", hint=f"statuses: {', '.join(STATUSES)}")
    settings = open_settings(context, no_color=no_color)
    with open_database(settings) as connection:
        selection = _selection(None, tuple(status or ()), types, since, until)
        events = event_store(connection, settings).listed(selection, limit)
    show_list(events, limit=limit, as_json=as_json, colour=not no_color)


@app.command("show")
def show(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(help="Ids of stored events.", metavar="EVENT_ID...")],
    *,
    as_json: Json = False,
) -> None:
    """Show all that is kept of single events, and what an error report came to."""
    from meterctl.cli.wiring import open_database, open_settings
    from meterctl.postgres.error_reports import report_of
    from meterctl.postgres.stripe_events import event_store
    from meterctl.render.webhooks import show_in_full

    settings = open_settings(context)
    with open_database(settings) as connection:
        events = event_store(connection, settings).shown(ids)
        unknown = sorted(set(ids) - {event["event_id"] for event in events})
        if unknown:
            raise InputError(f"not stored: {', '.join(unknown)}", hint="`meterctl webhooks list` shows what there is")
        reports = {event["event_id"]: report_of(connection, event["event_id"]) for event in events}
    show_in_full(events, reports, as_json=as_json)
