"""Pulling and replaying events. Imported by the commands, for it imports psycopg and the SDK."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from meterctl.actions.stripe_events import LISTED_FOR, Acting, EventActions, Pull
from meterctl.cli.event_wiring import EventWiring, client_of
from meterctl.cli.report_run import stop_on_signals
from meterctl.cli.stripe_wiring import key_owner
from meterctl.cli.wiring import open_database
from meterctl.clock import SystemHostClock
from meterctl.core.error_report import REPORT_TYPES
from meterctl.errors import ExitCode, MeterctlError
from meterctl.logs import get_logger
from meterctl.ports import Acted, StopRequest
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.identity import require_owner
from meterctl.postgres.stripe_events import EventSelection, event_store
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.postgres.webhook_fit import require_events_fit, require_subscriptions_fit
from meterctl.render.values import iso
from meterctl.render.webhooks import Deed, EventsDocument, show_events
from meterctl.settings import Settings
from meterctl.stripe_api.client import StripeClient
from meterctl.stripe_api.events import lists_of

log = get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class PullAsked:
    """The command line of `webhooks pull`, parsed."""

    types: tuple[str, ...]
    since: datetime | None
    as_json: bool
    quiet: bool


def pull_events(settings: Settings, asked: PullAsked) -> ExitCode:
    """Read Stripe's lists of events, then act on all that is stored and waits."""
    document = EventsDocument(command="pull")
    with open_database(settings) as connection, stop_on_signals() as stop:
        require_events_fit(connection, settings)
        clock = PostgresClock(connection, SystemHostClock())
        client = client_of(settings)
        owner = _owner(connection, settings, clock, client)
        account = owner.account if owner else None
        wiring = EventWiring(connection=connection, settings=settings, account=account, clock=clock, client=client)
        if owner is not None:
            _pull(wiring, owner, asked, document)
        store = event_store(connection, settings)
        store.take_up(settings.webhooks.handle, clock.now() - LISTED_FOR)
        waiting = EventSelection(statuses=("received",), types=_that_fit(connection, settings, document))
        act(wiring.actions(), store.ids(waiting), document, stop)
    show_events(document, as_json=asked.as_json, quiet=asked.quiet)
    return document.exit_code


def _that_fit(connection: Connection, settings: Settings, document: EventsDocument) -> tuple[str, ...]:
    """Return the types to act on: all (none is named), or error reports alone, where subscriptions have no table."""
    try:
        require_subscriptions_fit(connection, settings)
    except MeterctlError as error:
        lines = (f"events of subscriptions wait: {error.message}", *getattr(error, "problems", ()))
        document.notes.append((error.exit_code, "\n  ".join(lines)))
        return tuple(REPORT_TYPES)
    return ()


def _owner(
    connection: Connection, settings: Settings, clock: PostgresClock, client: StripeClient | None
) -> LedgerOwner | None:
    """Return whose key it is, once it was found to be the ledger's; None without a key."""
    if client is None:
        log.warning("stripe_not_configured", hint="set STRIPE_SECRET_KEY; only what is stored is acted on")
        return None
    owner = key_owner(client, settings, clock)
    require_owner(connection, owner)
    return owner


def _pull(wiring: EventWiring, owner: LedgerOwner, asked: PullAsked, document: EventsDocument) -> None:
    """Read both lists, each by itself: a key may be allowed to read one of them only."""
    types = asked.types or wiring.settings.webhooks.handle
    pull = Pull(
        store=event_store(wiring.connection, wiring.settings),
        lists=wiring.stripe,
        account=owner.account,
        livemode=owner.livemode,
    )
    now = wiring.clock.now()
    for some in lists_of(types):
        try:
            document.pulled.append(pull.run(some, now=now, since=asked.since))
        except MeterctlError as error:
            document.notes.append((error.exit_code, f"{', '.join(some)} were not read: {error.message}"))
    document.notes += [(ExitCode.PROBLEMS, _said_of(*one.gap)) for one in document.pulled if one.gap is not None]


def _said_of(since: datetime, until: datetime) -> str:
    """Return what to say of a span whose events nobody has read."""
    return (
        f"Stripe lists events for 30 days only: those between {iso(since)} and {iso(until)} were never read; "
        "`meterctl reconcile` finds usage that was rejected then"
    )


def act(
    actions: EventActions,
    event_ids: Iterable[str],
    document: EventsDocument,
    stop: StopRequest,
    *,
    again: bool = False,
    strict: bool = False,
) -> None:
    """Act on events, noting each in the document."""
    acting = Acting(
        actions=actions,
        may_go_on=lambda: not stop.requested,
        tell=lambda acted: document.deeds.append(deed_of(acted)),
    )
    acting.run(event_ids, again=again, strict=strict)
    document.left_count += acting.left_count
    if acting.unavailable is not None:
        document.notes.append((acting.unavailable.exit_code, acting.unavailable.message))
    if stop.signal_number is not None:
        document.notes.append((ExitCode(128 + stop.signal_number), "interrupted"))


def deed_of(acted: Acted) -> Deed:
    """Return what was done about an event, as it is shown."""
    done = f"{acted.status} at {iso(acted.at)}" if acted.was_done else acted.outcome
    return Deed(
        event_id=acted.event.id,
        type=acted.event.type,
        created=acted.event.created,
        status="skipped" if acted.was_done else acted.status,
        outcome=done,
    )
