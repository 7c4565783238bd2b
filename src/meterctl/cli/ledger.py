"""`ledger list | show | retry | waive`: the ledger by hand."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterctl.cli.options import DryRun, Json, NoColor, Yes, instant
from meterctl.errors import ConfigurationError, InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterctl.postgres.connect import Connection
    from meterctl.postgres.ledger_admin import Event, Retried, Selection
    from meterctl.settings import Settings

SCHEMA = "meterctl.ledger/1"
IDENTIFIER_TAKEN = "identifier_taken"

app = typer.Typer(help="Look at events; issue rejected ones again, or close them with a reason.", no_args_is_help=True)

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
    from meterctl.core.model import State
    from meterctl.postgres.ledger_admin import Selection

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
    _show_events(_selected(context, selection, limit), as_json=as_json, colour=not no_color)


@app.command("show")
def show_event(
    context: typer.Context,
    which: Annotated[list[str], typer.Argument(help="Event ids or identifiers.", metavar="ID...")],
    *,
    as_json: Json = False,
) -> None:
    """Show all the ledger knows of single events."""
    from meterctl.postgres.ledger_admin import Selection

    ids = Selection(ids=tuple(int(one) for one in which if one.isdigit()))
    identifiers = Selection(identifiers=tuple(which))
    parts = [identifiers, ids] if ids != Selection() else [identifiers]
    found = {event["id"]: event for part in parts for event in _selected(context, part)}
    known = {str(event["id"]) for event in found.values()} | {event["identifier"] for event in found.values()}
    _refuse_unknown([one for one in which if one not in known])
    if as_json:
        print(json.dumps({"schema": SCHEMA, "events": [event_dict(event) for event in found.values()]}))
        return
    for event in found.values():
        width = max(map(len, event))
        print("\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in event.items() if value is not None))


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
    asked = _asked(ids, reason, code=code, meter=meter, customer=customer, states=("rejected",))
    _Work(context=context, asked=asked, yes=yes, dry_run=dry_run, as_json=as_json, verb="retry").run(_retried)


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
    asked = _asked(ids, reason, code=code, meter=meter, customer=customer, states=("rejected", "expired"))
    _Work(context=context, asked=asked, yes=yes, dry_run=dry_run, as_json=as_json, verb="waive").run(_waived)


@dataclass(frozen=True, slots=True)
class _Asked:
    selection: "Selection"
    reason: str

    @property
    def by_id(self) -> bool:
        return bool(self.selection.ids)


def _asked(
    ids: list[str] | None,
    reason: str,
    *,
    code: str | None,
    meter: str | None,
    customer: str | None,
    states: tuple[str, ...],
) -> _Asked:
    from meterctl.postgres.ledger_admin import Selection

    if not reason.strip():
        raise UsageError("--reason is empty", hint="say in a few words why; it is kept in the ledger")
    wrong = [one for one in ids or () if not one.isdigit()]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: no event id", hint="`meterctl ledger list` shows ids")
    if not (ids or code or meter or customer):
        raise UsageError("which events?", hint="give ids, or --code, --meter or --customer")
    numbers = tuple(int(one) for one in ids or ())
    # Ids are looked up in whatever state they are, to say why one cannot be taken.
    return _Asked(
        Selection(ids=numbers, states=() if numbers else states, code=code, meter=meter, customer=customer), reason
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """Show, ask, do, tell."""

    context: typer.Context
    asked: _Asked
    verb: str
    yes: bool
    dry_run: bool
    as_json: bool

    def run(self, act: "Callable[[Connection, Settings, Sequence[Event], str], Retried]") -> None:
        from meterctl.cli.wiring import confirmed, open_database, open_settings
        from meterctl.postgres.ledger_admin import select

        settings = open_settings(self.context)
        with open_database(settings) as connection:
            found = select(connection, self.asked.selection, None)
            known = {event["id"] for event in found}
            _refuse_unknown([str(one) for one in self.asked.selection.ids if one not in known])
            events = self._takable(found)
            self._show(events)
            if not events or self.dry_run or not confirmed(f"{self.verb} these {len(events)} events?", yes=self.yes):
                self._tell([], {}, asked_no=bool(events) and not self.dry_run)
                return
            done = act(connection, settings, events, self.asked.reason)
            self._tell(done.done_ids, done.refused)

    def _takable(self, found: "Sequence[Event]") -> "list[Event]":
        states = {"retry": {"rejected"}, "waive": {"rejected", "expired"}}[self.verb]
        for event in found:
            if event["state"] not in states:
                raise InputError(
                    f"event {event['id']} is {event['state']}; {self.verb} takes {' or '.join(sorted(states))} only",
                    hint=f"`meterctl ledger show {event['id']}` says what became of it",
                )
        if self.verb == "waive" or self.asked.by_id:
            return list(found)
        taken = [event for event in found if event["error_code"] == IDENTIFIER_TAKEN]
        if taken:
            _say(
                f"{len(taken)} identifier_taken left out: under a new identifier they may be billed a second time; "
                "look at each, then retry it by its id"
            )
        return [event for event in found if event["error_code"] != IDENTIFIER_TAKEN]

    def _show(self, events: "Sequence[Event]") -> None:
        if not events:
            _say("no event matches")
            return
        codes = Counter(event["error_code"] for event in events)
        units = sum((event["quantity"] or Decimal(0) for event in events), Decimal(0))
        customers = len({event["customer"] for event in events if event["customer"]})
        _say(f"would {self.verb} {len(events)} events, {units:f} units, {customers} customers")
        for code, count in codes.most_common():
            samples = [str(event["id"]) for event in events if event["error_code"] == code][:5]
            _say(f"  {count} {code} (e.g. event {', '.join(samples)})")

    def _tell(self, done_ids: "Sequence[int]", refused: "Mapping[int, str]", *, asked_no: bool = False) -> None:
        if self.as_json:
            document = {"schema": SCHEMA, "dry_run": self.dry_run, self.verb: list(done_ids)}
            print(json.dumps(document | {"refused": [{"id": key, "reason": why} for key, why in refused.items()]}))
            return
        for event_id, why in refused.items():
            print(f"event {event_id} not taken: {why}")
        if asked_no:
            print("nothing was changed")
        elif done_ids:
            what = {"retry": "due again; the next report delivers them", "waive": "waived"}[self.verb]
            print(f"{len(done_ids)} events are {what}")


def _retried(connection: "Connection", settings: "Settings", events: "Sequence[Event]", reason: str) -> "Retried":
    from meterctl.clock import SystemHostClock
    from meterctl.postgres.clock import PostgresClock
    from meterctl.postgres.ledger_admin import BATCH_SIZE_MAX, Retried, retry
    from meterctl.postgres.rows import LedgerOwner, PostgresRows
    from meterctl.settings import RowsMeter

    done: list[int] = []
    refused: dict[int, str] = {}
    clock = PostgresClock(connection, SystemHostClock())
    for key in sorted({event["meter"] for event in events}):
        meter = settings.meters.get(key)
        if not isinstance(meter, RowsMeter):
            raise ConfigurationError(
                f"meter {key} is not configured, so its rows cannot be read", hint=f"restore [meters.{key}]"
            )
        source = PostgresRows(connection, key, meter, settings.lookups, LedgerOwner(account="", livemode=False))
        ids = [event["id"] for event in events if event["meter"] == key]
        for start in range(0, len(ids), BATCH_SIZE_MAX):
            batch = ids[start : start + BATCH_SIZE_MAX]
            result = retry(connection, batch, source, meter.event_name, reason, clock.now())
            done += result.done_ids
            refused |= result.refused
    return Retried(done_ids=tuple(done), refused=refused)


def _waived(connection: "Connection", _: "Settings", events: "Sequence[Event]", reason: str) -> "Retried":
    from meterctl.postgres.ledger_admin import Retried, waive

    ids = [event["id"] for event in events]
    done = waive(connection, ids, reason)
    gone = dict.fromkeys(sorted(set(ids) - set(done)), "it changed meanwhile")
    return Retried(done_ids=tuple(done), refused=gone)


def _selected(context: typer.Context, selection: "Selection", limit: int | None = None) -> "list[Event]":
    from meterctl.cli.wiring import open_database, open_settings
    from meterctl.postgres.ledger_admin import select

    with open_database(open_settings(context)) as connection:
        return select(connection, selection, limit)


def _refuse_unknown(unknown: "Sequence[str]") -> None:
    if unknown:
        raise InputError(f"the ledger has no event {', '.join(unknown)}", hint="`meterctl ledger list` shows ids")


def event_dict(event: "Event") -> dict[str, Any]:
    """Return an event as our JSON documents hold it."""
    from meterctl.render.values import jsonable

    return {name: jsonable(value) for name, value in event.items()}


def _cell(value: object) -> str:
    from meterctl.render.values import shown

    return shown(value)


LISTED = ("id", "state", "event_name", "customer", "quantity", "occurred_at", "source_row_id", "error_code")


def _show_events(events: "Sequence[Event]", *, as_json: bool, colour: bool) -> None:
    from meterctl.render.tables import table

    if as_json:
        print(json.dumps({"schema": SCHEMA, "events": [event_dict(event) for event in events]}))
    elif not events:
        print("no event matches")
    else:
        rows = [[_cell(event[name]) for name in LISTED] for event in events]
        print(table([name.replace("_", " ") for name in LISTED], rows, console=sys.stdout.isatty(), colour=colour))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
