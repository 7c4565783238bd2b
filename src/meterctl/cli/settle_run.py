"""Settling from the command line, by Stripe's totals. Imported by the command, for it imports psycopg and the SDK."""

from dataclasses import dataclass
from datetime import timedelta

from meterctl.actions.settle import Settlement
from meterctl.cli.meter_wiring import MeterWiring
from meterctl.cli.report import meters_called
from meterctl.cli.report_run import recorded_if_it_fails, stop_on_signals
from meterctl.cli.stripe_wiring import key_owner, summaries
from meterctl.cli.wiring import open_database
from meterctl.clock import SystemHostClock
from meterctl.errors import ExitCode, MeterctlError
from meterctl.ports import StopRequest
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.identity import claim_ledger, require_owner
from meterctl.postgres.ledger import take_over
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.runs import finish_run, run_label, start_run
from meterctl.postgres.settlements import held_events
from meterctl.postgres.sources import Sources
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.render.settle import HELD_SHOWN_MAX, MeterSettled, SettleDocument, show_reads, show_settled
from meterctl.settings import Settings
from meterctl.stripe_api.client import StripeClient, stripe_client


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line of `settle`, parsed."""

    meters: tuple[str, ...]
    reads_max: int
    lock_timeout_s: float
    dry_run: bool
    as_json: bool
    quiet: bool
    colour: bool


def settle_by_totals(settings: Settings, asked: Asked) -> ExitCode:
    """Read Stripe's total of every open minute once, decide what can be decided, show what is held."""
    keys = meters_called(settings, asked.meters)
    with open_database(settings) as connection, stop_on_signals() as stop:
        clock = PostgresClock(connection, SystemHostClock())
        if asked.dry_run:
            return _count_reads(connection, settings, keys, clock, asked)
        client = stripe_client(settings.stripe, connections_max=1)
        owner = key_owner(client, settings, clock)
        require_owner(connection, owner)
        claim_ledger(connection, owner, clock.now())
        run_id = start_run(connection, "settle", owner, clock.now())
        with recorded_if_it_fails(connection, run_id, clock), _locks(settings) as locks:
            run = _Run(
                connection=connection,
                client=client,
                settings=settings,
                owner=owner,
                clock=clock,
                locks=locks,
                stop=stop,
                run_id=run_id,
                asked=asked,
            )
            meters = [run.settled(key) for key in keys if not stop.requested]
            held = held_events(connection, [meter.event_name for meter in meters], limit=HELD_SHOWN_MAX)
        document = SettleDocument(meters=meters, held=held, signal_number=stop.signal_number)
        finish_run(connection, run_id, document.exit_code, {}, clock.now())
    show_settled(document, as_json=asked.as_json, quiet=asked.quiet, colour=asked.colour)
    return document.exit_code


def _count_reads(
    connection: Connection, settings: Settings, keys: list[str], clock: PostgresClock, asked: Asked
) -> ExitCode:
    wiring = MeterWiring(sources=Sources(connection=connection, settings=settings))
    counts = {settings.meters[key].event_name: len(wiring.settlements(key).windows(clock.now())) for key in keys}
    show_reads(counts, as_json=asked.as_json)
    return ExitCode.OK


def _locks(settings: Settings) -> MeterLocks:
    conninfo = settings.database_url.get_secret_value()
    return MeterLocks(conninfo, run_label=run_label(), host_clock=SystemHostClock())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    connection: Connection
    client: StripeClient
    settings: Settings
    owner: LedgerOwner
    clock: PostgresClock
    locks: MeterLocks
    stop: StopRequest
    run_id: int
    asked: Asked

    def settled(self, key: str) -> MeterSettled:
        """Settle one meter; what keeps it from being settled is told, and the other meters go on."""
        name, timeout_s = self.settings.meters[key].event_name, self.asked.lock_timeout_s
        if not self.locks.acquire(name, timeout_s=timeout_s, stopping=lambda: self.stop.requested):
            note = f"locked by {self.locks.holder(name)}"
            return MeterSettled(event_name=name, code=ExitCode.LOCKED, note=note)
        take_over(self.connection, name, self.run_id)
        settlement = Settlement(
            ledger=self._wiring.settlements(key),
            totals=summaries(self.client, self.settings, name),
            clock=self.clock,
            grace=timedelta(hours=self.settings.stripe.invoice_grace_h),
            may_go_on=self._may_go_on,
            reads_max=self.asked.reads_max,
        )
        try:
            settlement.run()
        except MeterctlError as error:
            return MeterSettled(event_name=name, result=settlement.result, code=error.exit_code, note=error.message)
        return MeterSettled(event_name=name, result=settlement.result)

    @property
    def _wiring(self) -> MeterWiring:
        sources = Sources(connection=self.connection, settings=self.settings, owner=self.owner)
        return MeterWiring(sources=sources, run_id=self.run_id)

    def _may_go_on(self) -> bool:
        self.locks.keep()
        return not self.stop.requested
