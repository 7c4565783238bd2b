"""`webhooks …`: whether what an endpoint received is from Stripe; read its events, act on them, look at them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterctl.cli.options import DryRun, Json, Live, NoColor, Quiet, Verbose, Yes, instant
from meterctl.errors import ConfigurationError, ExitCode, UsageError

if TYPE_CHECKING:
    from meterctl.core.signature import WebhookEvent, WebhookRefusedError
    from meterctl.postgres.stripe_events import EventSelection
    from meterctl.settings import Settings

app = typer.Typer(help="Stripe's events: verify, pull, replay and show them.", no_args_is_help=True)

VERIFY_SCHEMA = "meterctl.webhooks_verify/1"
STDIN = "-"
TOLERANCE_S = 300
"""As in Stripe's own libraries. It bounds for how long a stolen request can be used again."""

Body = Annotated[str, typer.Argument(help="The request's body, in a file or on stdin (-).", metavar="FILE|-")]
Header = Annotated[str, typer.Option("--signature", help="Value of its Stripe-Signature header.", metavar="HEADER")]
SecretFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--secret-file",
        help="Signing secrets, instead of STRIPE_WEBHOOK_SECRET's; may be repeated.",
        metavar="FILE",
    ),
]
Tolerance = Annotated[
    int,
    typer.Option(
        "--tolerance", min=1, max=1_000_000_000, help="Seconds that the signature may be off, either way.", metavar="S"
    ),
]
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

At = Annotated[str | None, typer.Option("--at", help="When it was received. Default: now.", metavar="INSTANT")]


@app.command("verify")
def verify_webhook(
    context: typer.Context,
    body: Body = STDIN,
    *,
    signature: Header,
    secret_files: SecretFiles = None,
    tolerance: Tolerance = TOLERANCE_S,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Check the signature of a webhook; print its event's id, type and age, or the reason why not (exit 65)."""
    from meterctl.cli.wiring import open_settings
    from meterctl.core.signature import WebhookRefusedError, parse_event, verify

    received_at = instant(at) if at else datetime.now(UTC)
    settings = open_settings(context, require_database=False, webhook_secret_files=secret_files or ())
    received = _read(body)
    try:
        signed_at = verify(
            received, signature, _secrets(settings), now=received_at, tolerance=timedelta(seconds=tolerance)
        )
        event = parse_event(received)
    except WebhookRefusedError as refusal:
        if as_json:
            print(json.dumps(_refused(refusal)))
        raise
    print(json.dumps(_genuine(event, signed_at, received_at)) if as_json else _line(event, received_at - signed_at))


def _read(name: str) -> bytes:
    """Return the very bytes. Raises UsageError."""
    try:
        with open(0 if name == STDIN else name, "rb", closefd=name != STDIN) as stream:
            return stream.read()
    except OSError as error:
        shown = "stdin" if name == STDIN else name
        raise UsageError(f"{shown} cannot be read: {error.strerror}", hint="name the file with the body") from error


def _secrets(settings: "Settings") -> list[str]:
    if not settings.stripe.webhook_secrets:
        raise ConfigurationError(
            "there is no signing secret to verify with",
            hint="set STRIPE_WEBHOOK_SECRET or STRIPE_WEBHOOK_SECRET_FILE, or give --secret-file",
        )
    return [secret.get_secret_value() for secret in settings.stripe.webhook_secrets]


def _line(event: "WebhookEvent", age: timedelta) -> str:
    from meterctl.render.values import printable, span

    when = f"{span(-age)} ahead" if age < timedelta(0) else f"{span(age)} ago"
    return f"{printable(event.id)} {printable(event.type)}, signed {when}"


def _genuine(event: "WebhookEvent", signed_at: datetime, received_at: datetime) -> dict[str, Any]:
    from meterctl.render.values import iso

    return {
        "schema": VERIFY_SCHEMA,
        "exit_code": int(ExitCode.OK),
        "id": event.id,
        "type": event.type,
        "object": event.object,
        "signed_at": iso(signed_at),
        "age_s": (received_at - signed_at) // timedelta(seconds=1),
        "refused": None,
    }


def _refused(refusal: "WebhookRefusedError") -> dict[str, Any]:
    """Nothing of a body that nobody vouches for is shown."""
    return {
        "schema": VERIFY_SCHEMA,
        "exit_code": int(refusal.exit_code),
        **dict.fromkeys(("id", "type", "object", "signed_at", "age_s")),
        "refused": {"code": refusal.code, "message": refusal.message},
    }


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
    from meterctl.errors import InputError
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
