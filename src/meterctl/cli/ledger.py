"""`ledger list | show | retry | waive | doubt`: the ledger by hand."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from meterctl.cli.options import DryRun, Json, NoColor, Yes, instant
from meterctl.errors import InputError, UsageError

if TYPE_CHECKING:
    from meterctl.postgres.ledger_events import Selection

app = typer.Typer(help="Look at events; retry, close or doubt them, each with a reason.", no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Argument(help="Event ids.", metavar="[ID]...", show_default=False)]
Code = Annotated[str | None, typer.Option("--code", help="Only events with this error code.")]
Meter = Annotated[str | None, typer.Option("--meter", help="Only events of this meter.")]
Customer = Annotated[str | None, typer.Option("--customer", help="Only events of this Stripe customer.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger.")]


@app.command("list")
def list_events(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    *,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only this state; may be repeated.")] = None,
    code: Code = None,
    meter: Meter = None,
    customer: Customer = None,
    row: Annotated[list[str] | None, typer.Option("--row", help="Only the events of this usage row.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Used at or after this instant (UTC).")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Used before this instant (UTC).")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """List events, newest first."""
    from meterctl.cli.wiring import open_database, open_settings
    from meterctl.core.model import State
    from meterctl.postgres.ledger_events import Selection, select
    from meterctl.render.ledger import show_events

    unknown = sorted(set(state or ()) - set(State))
    if unknown:
        raise UsageError(f"no state is called {', '.join(unknown)}", hint=f"states: {', '.join(State)}")
    selection = Selection(
        states=tuple(state or ()),
        code=code,
        meter=meter,
        customer=customer,
        row_ids=tuple(row or ()),
        since=instant(since) if since else None,
        until=instant(until) if until else None,
    )
    with open_database(open_settings(context, no_color=no_color)) as connection:
        events = select(connection, selection, limit)
    show_events(events, limit=limit, as_json=as_json, colour=not no_color)


@app.command("show")
def show_event(
    context: typer.Context,
    which: Annotated[list[str], typer.Argument(help="Event ids or identifiers.", metavar="ID...")],
    *,
    as_json: Json = False,
) -> None:
    """Show all the ledger knows of single events, and what each replaced and was replaced by."""
    from meterctl.cli.wiring import open_database, open_settings
    from meterctl.postgres.ledger_events import ID_MAX, Selection, chains, select
    from meterctl.render.ledger import show_in_full

    ids = tuple(int(one) for one in which if _is_id(one) and int(one) <= ID_MAX)
    parts = [Selection(identifiers=tuple(which)), *([Selection(ids=ids)] if ids else [])]
    with open_database(open_settings(context)) as connection:
        found = {event["id"]: event for part in parts for event in select(connection, part, None)}
        known = {*found, *(event["identifier"] for event in found.values())}
        refuse_unknown(one for one in which if one not in known and not (_is_id(one) and int(one) in known))
        links = chains(connection, list(found))
    show_in_full(list(found.values()), links, as_json=as_json)


@app.command("retry")
def retry_events(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    ids: Ids = None,
    *,
    reason: Reason,
    code: Code = None,
    meter: Meter = None,
    customer: Customer = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make rejected events due again, their rows and customers read anew. The next report delivers them.

    What Stripe rejected goes out under a new identifier. An identifier_taken is retried by its id only: whoever took
    the identifier may have billed the usage, and a new one would bill it again.
    """
    selection = _selection(ids, reason, code=code, meter=meter, customer=customer)
    _change(context, "retry", selection, reason, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command("waive")
def waive_events(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    ids: Ids = None,
    *,
    reason: Reason,
    code: Code = None,
    meter: Meter = None,
    customer: Customer = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Close rejected or expired events for good: they will not be billed."""
    selection = _selection(ids, reason, code=code, meter=meter, customer=customer)
    _change(context, "waive", selection, reason, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command("doubt")
def doubt_events(
    context: typer.Context,
    *,
    meter: Annotated[str, typer.Option("--meter", help="The meter.", metavar="NAME")],
    customer: Annotated[str, typer.Option("--customer", help="The Stripe customer id.")],
    minute: Annotated[str, typer.Option("--minute", help="The minute, such as 2026-12-01T02:17:00Z.")],
    reason: Reason,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put accepted events of one customer and minute in doubt, where Stripe's total is short of them.

    Totals settle them: what Stripe has is accepted again, what it has not is sent again.
    """
    from meterctl.cli.ledger_doubt import Asked, doubt_events
    from meterctl.cli.options import instant
    from meterctl.cli.wiring import open_settings
    from meterctl.core.settlement import Window

    window = Window(customer=customer, minute=instant(minute))
    asked = Asked(meter=meter, window=window, reason=reason, yes=yes, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(doubt_events(open_settings(context), asked))


def _selection(
    ids: list[str] | None, reason: str, *, code: str | None, meter: str | None, customer: str | None
) -> "Selection":
    from meterctl.postgres.ledger_events import Selection

    if not reason.strip():
        raise UsageError("--reason is empty", hint="say in a few words why; it is kept in the ledger")
    wrong = [one for one in ids or () if not _is_id(one)]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: no event id", hint="`meterctl ledger list` shows ids")
    if not (ids or code or meter or customer):
        raise UsageError("which events?", hint="give ids, or --code, --meter or --customer")
    return Selection(ids=tuple(int(one) for one in ids or ()), code=code, meter=meter, customer=customer)


def _change(
    context: typer.Context, verb: str, selection: "Selection", reason: str, *, yes: bool, dry_run: bool, as_json: bool
) -> None:
    from meterctl.cli.ledger_change import Asked, change_events
    from meterctl.cli.wiring import open_settings

    asked = Asked(verb=verb, selection=selection, reason=reason, yes=yes, dry_run=dry_run, as_json=as_json)
    change_events(open_settings(context), asked)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit()


def refuse_unknown(which: Iterable[object]) -> None:
    """Raise InputError naming the ids or identifiers that no event has, if there are any."""
    names = ", ".join(map(str, which))
    if names:
        raise InputError(f"the ledger has no event {names}", hint="`meterctl ledger list` shows ids")
