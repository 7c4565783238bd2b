"""Replaying events: those that are stored, or in a file. Imported by the command, for it imports psycopg."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from meterctl.actions.stripe_events import EventActions
from meterctl.cli.event_wiring import EventWiring, client_of
from meterctl.cli.report_run import stop_on_signals
from meterctl.cli.webhooks_run import act
from meterctl.cli.wiring import confirmed, open_database
from meterctl.clock import SystemHostClock
from meterctl.core.event_lines import read_lines
from meterctl.core.stripe_event import StripeEvent
from meterctl.errors import ExitCode, InputError, UsageError
from meterctl.ports import Acted
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.identity import ledger_identity, require_owner
from meterctl.postgres.stripe_events import EventSelection, PostgresStripeEvents, event_store
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.postgres.webhook_fit import require_events_fit, require_subscriptions_fit
from meterctl.render.values import iso
from meterctl.render.webhooks import Deed, EventsDocument, show_events
from meterctl.settings import Settings

FAULTS_NAMED_MAX = 20
"""Broken lines that are named one by one."""

BATCH_SIZE = 500
"""Lines stored in one transaction."""

STDIN = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayAsked:
    """The command line of `webhooks replay`, parsed. `selection` has the ids, types and span that were given."""

    selection: EventSelection
    file: str | None
    force: bool
    dry_run: bool
    yes: bool
    as_json: bool
    quiet: bool


def replay_events(settings: Settings, asked: ReplayAsked) -> ExitCode:
    """Act on the events that were asked for, oldest first."""
    document = EventsDocument(command="replay", dry_run=asked.dry_run)
    with open_database(settings) as connection, stop_on_signals() as stop:
        require_events_fit(connection, settings)
        require_subscriptions_fit(connection, settings)
        wiring = EventWiring(
            connection=connection,
            settings=settings,
            account=_account(connection, settings),
            clock=PostgresClock(connection, SystemHostClock()),
            client=client_of(settings),
        )
        replay = _Replay(
            asked=asked, store=event_store(connection, settings), actions=wiring.actions(), document=document
        )
        ids = replay.event_ids()
        if asked.force and ids and not asked.dry_run:
            question = f"act again on {len(ids)} event{'' if len(ids) == 1 else 's'}, whatever was done about them?"
            ids = ids if confirmed(question, yes=asked.yes) else []
        if not asked.dry_run:
            act(replay.actions, ids, document, stop, again=asked.force, strict=True)
    show_events(document, as_json=asked.as_json, quiet=asked.quiet)
    return document.exit_code


def _account(connection: Connection, settings: Settings) -> str | None:
    """Return whose ledger it is, if it is somebody's. Raises ConfigurationError where this run is for another mode."""
    found = ledger_identity(connection)
    if found is None:
        return settings.stripe.account
    require_owner(connection, LedgerOwner(account=found["account"], livemode=settings.stripe.mode == "live"))
    return str(found["account"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Replay:
    """Finds what is to be replayed. In a dry run it is told right away, and a file's events are not stored."""

    asked: ReplayAsked
    store: PostgresStripeEvents
    actions: EventActions
    document: EventsDocument

    def event_ids(self) -> list[str]:
        """Return the ids to act on, oldest first. Raises InputError naming those that are not stored."""
        if self.asked.file is not None:
            ids = [event_id for batch in self._batches(self.asked.file) for event_id in self._taken(batch)]
            return [] if self.asked.dry_run else self.store.ids(EventSelection(ids=tuple(ids))) if ids else []
        ids = self.store.ids(self.asked.selection)
        unknown = sorted(set(self.asked.selection.ids) - set(ids))
        if unknown:
            raise InputError(
                f"not stored, or not of that type and time: {', '.join(unknown)}",
                hint="`meterctl webhooks pull` reads Stripe's list; `--file` takes events from a file",
            )
        if self.asked.dry_run:
            self.document.deeds += [self._would(self.store.read(event_id)) for event_id in ids]
        return ids

    def _batches(self, name: str) -> Iterator[list[StripeEvent]]:
        batch: list[StripeEvent] = []
        fault_count = 0
        with _opened(name) as stream:
            for line in read_lines(stream):
                if line.event is None:
                    fault_count += 1
                    if fault_count <= FAULTS_NAMED_MAX:
                        self._note(f"{name}: line {line.number}: {line.fault}")
                elif self.asked.selection.takes(line.event):
                    batch.append(line.event)
                if len(batch) >= BATCH_SIZE:
                    yield batch
                    batch = []
        yield batch
        if fault_count > FAULTS_NAMED_MAX:
            self._note(f"{name}: {fault_count - FAULTS_NAMED_MAX} more broken lines")

    def _taken(self, batch: Sequence[StripeEvent]) -> list[str]:
        ours = [event for event in batch if self.actions.foreign(event) is None]
        refused = [event for event in batch if self.actions.foreign(event) is not None]
        self.document.deeds += [self._would(Acted(event=event, status="received")) for event in refused]
        if self.asked.dry_run:
            known = self.store.ids(EventSelection(ids=tuple(event.id for event in ours))) if ours else []
            self.document.deeds += [
                self._would(self.store.read(event.id) if event.id in known else Acted(event=event, status="received"))
                for event in ours
            ]
        else:
            self.store.store(ours, source="file")
        return [event.id for event in ours]

    def _would(self, found: Acted) -> Deed:
        status = self.actions.would(found, again=self.asked.force)
        said = {"skipped": f"{found.status} at {iso(found.at)}", "refused": self.actions.foreign(found.event)}
        return Deed(
            event_id=found.event.id,
            type=found.event.type,
            created=found.event.created,
            status=status,
            outcome=said.get(status),
        )

    def _note(self, text: str) -> None:
        self.document.notes.append((ExitCode.BAD_INPUT, text))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """Open the file, or stdin for `-`. Raises UsageError."""
    try:
        with open(0 if name == STDIN else name, "rb", closefd=name != STDIN) as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}", hint="name a file of one event a line") from error
