"""Wiring of a report: adapters for its ports, the run's record, and what it prints."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from meterctl.actions.meter_report import MeterJob
from meterctl.actions.preview import preview
from meterctl.actions.report import Report
from meterctl.actions.tally import Tally, summed, together
from meterctl.cli.far_sides import FarSides, far_sides
from meterctl.cli.meter_wiring import MeterWiring
from meterctl.cli.stripe_wiring import dispatchers, rate_per_s, summaries
from meterctl.cli.wiring import open_database
from meterctl.clock import SystemHostClock
from meterctl.core.allowance import Allowance
from meterctl.core.scope import Scope
from meterctl.errors import ExitCode, MeterctlError
from meterctl.logs import get_logger
from meterctl.ports import StopRequest, Undeliverable
from meterctl.postgres.check import require_fit
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.counter import unknown_usage
from meterctl.postgres.identity import claim_ledger
from meterctl.postgres.ledger import note_told, undeliverable
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.runs import finish_run, run_label, start_run
from meterctl.postgres.sources import Sources
from meterctl.render.progress import delivery_progress
from meterctl.render.report import ReportDocument, show_plan, show_report

if TYPE_CHECKING:
    from meterctl.cli.run_options import Asked
    from meterctl.settings import Settings

log = get_logger()


def dry_run(settings: "Settings", keys: Sequence[str], asked: "Asked", *, unsent: bool) -> int:
    """Show what a report would do. Also what happens where Stripe is not configured: count, write nothing, exit 0."""
    started_at = datetime.now(UTC)
    with open_database(settings) as connection:
        require_fit(connection, settings, keys)
        now = PostgresClock(connection, SystemHostClock()).now()
        sources = Sources(connection=connection, settings=settings, level=asked.level, open_too=asked.open_too)
        plans = [
            preview(
                settings.meters[key].event_name,
                sources.of(key),
                now,
                recent=asked.options.recent,
                row_ids=asked.options.row_ids,
                limit=asked.options.limit,
            )
            for key in keys
        ]
    if unsent:
        log.warning("stripe_not_configured", hint="set STRIPE_SECRET_KEY; nothing was written or sent")
    document = ReportDocument(
        command=asked.command,
        mode=settings.stripe.mode,
        dry_run=True,
        started_at=started_at,
        run_id=None,
        exit_code=ExitCode.OK,
        tallies=[plan.tally for plan in plans],
        totals=summed(plan.tally for plan in plans),
    )
    show_plan(document, plans, rate_per_s=rate_per_s(settings), as_json=asked.run.as_json, quiet=asked.run.quiet)
    return ExitCode.OK


@dataclass(kw_only=True, slots=True)
class Job:
    """What the attempts of one command share: the limit, and what each has done so far."""

    allowance: Allowance
    attempts: list[list[Tally]] = field(default_factory=list)


def real_run(settings: "Settings", keys: Sequence[str], asked: "Asked", job: Job) -> ReportDocument:
    """Report for real, once. Nothing is written before account, mode and tables have been found to fit."""
    with far_sides(settings, keys) as far, stop_on_signals() as stop:
        errand = Errand(undeliverable=lambda: strays(far.connection, settings))
        return carried_out(far, keys, asked, job, stop, errand)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """What a run is for, beyond its options.

    `undeliverable` finds what no meter would send. `check` looks at each meter's job under its lock, and raises where
    it must not begin. `expected` is how many events will be delivered, if that is known.
    """

    undeliverable: Callable[[], Sequence[Undeliverable]] = tuple
    check: Callable[[MeterJob], object] = lambda _: None
    expected: int | None = None


def carried_out(
    far: FarSides, keys: Sequence[str], asked: "Asked", job: Job, stop: StopRequest, errand: Errand
) -> ReportDocument:
    """Record a run, carry it out, and return what came of it."""
    started_at = datetime.now(UTC)
    claim_ledger(far.connection, far.owner, far.clock.now())
    run_id = start_run(far.connection, asked.command, far.owner, far.clock.now())
    with (
        recorded_if_it_fails(far.connection, run_id, far.clock),
        MeterLocks(
            far.settings.database_url.get_secret_value(), run_label=run_label(), host_clock=far.host_clock
        ) as locks,
        delivery_progress(wanted=not asked.run.quiet, expected=errand.expected) as progress,
    ):
        report = Report(
            options=asked.options,
            livemode=far.owner.livemode,
            grace=far.grace,
            clock=far.clock,
            host_clock=far.host_clock,
            locks=locks,
            dispatcher=dispatchers(far.client, far.settings, far.host_clock),
            stop=stop,
            progress=progress,
            undeliverable=errand.undeliverable,
            allowance=job.allowance,
        )
        job.attempts.append(report.result.tallies)
        wiring = MeterWiring(sources=sources_of(far, asked), run_id=run_id)
        result = report.run(_Jobs(wiring=wiring, far=far, scope=asked.options.scope, check=errand.check).of(keys))
    finish_run(far.connection, run_id, result.exit_code, result.totals.figures(), far.clock.now())
    tallies = together(job.attempts)
    return ReportDocument(
        command=asked.command,
        mode=far.settings.stripe.mode,
        dry_run=False,
        started_at=started_at,
        run_id=run_id,
        exit_code=ExitCode.worst([result.exit_code, *([ExitCode.PROBLEMS] if summed(tallies).problems else [])]),
        tallies=tallies,
        totals=summed(tallies),
        notes=result.notes,
    )


@contextmanager
def recorded_if_it_fails(connection: Connection, run_id: int, clock: PostgresClock) -> Iterator[None]:
    """Note the end of a run that an error ends, where the database still listens; else it shows as died."""
    try:
        yield
    except MeterctlError as error:
        with suppress(MeterctlError):
            finish_run(connection, run_id, error.exit_code, {}, clock.now())
        raise


def sources_of(far: FarSides, asked: "Asked") -> Sources:
    """Return what reads the meters' usage, as it was asked for."""
    return Sources(
        connection=far.connection, settings=far.settings, owner=far.owner, level=asked.level, open_too=asked.open_too
    )


def strays(connection: Connection, settings: "Settings") -> list[Undeliverable]:
    """Return the open events and the recorded usage that no enabled meter would send."""
    counters = [key for key, meter in settings.enabled_meters.items() if meter.source == "counter"]
    return [
        *undeliverable(connection, [meter.event_name for meter in settings.enabled_meters.values()]),
        *unknown_usage(connection, counters),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Jobs:
    """Opens each meter's part of the run, under its lock."""

    wiring: MeterWiring
    far: FarSides
    scope: Scope
    check: Callable[[MeterJob], object]

    def of(self, keys: Sequence[str]) -> Mapping[str, Callable[[], MeterJob]]:
        """Return event_name → how to open its job."""
        return {self.wiring.sources.settings.meters[key].event_name: partial(self._job, key) for key in keys}

    def _job(self, key: str) -> MeterJob:
        # Again, now that the meter is locked: `db forget-test` may have made the ledger nobody's while we waited.
        far = self.far
        claim_ledger(far.connection, far.owner, far.clock.now())
        totals = summaries(far.client, far.settings, far.settings.meters[key].event_name)
        job = self.wiring.job(key, totals, scope=self.scope)
        self.check(job)
        return job


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block the first SIGTERM or SIGINT asks for an orderly end, a second one ends at once."""
    stop = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise SystemExit(128 + number)
        stop.signal_number = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(document: ReportDocument, settings: "Settings", asked: "Asked") -> None:
    """Print the run's result and write its one canonical log line. From then on its problems are no news."""
    show_report(document, as_json=asked.run.as_json, quiet=asked.run.quiet, colour=not asked.run.no_color)
    if asked.level.subject is not None and document.totals.skipped and not asked.run.quiet:
        print(f"meterctl: {asked.level.subject}: no Stripe customer for it; nothing was sent", file=sys.stderr)
    # On a terminal the table has said it; elsewhere a run that did not go well is logged even under -q.
    level = log.info if document.exit_code == ExitCode.OK or sys.stderr.isatty() else log.error
    level(
        "run_finished",
        run_id=document.run_id,
        command=document.command,
        exit_code=int(document.exit_code),
        **document.totals.figures(),
    )
    if document.totals.problems and document.run_id is not None:
        _note_told(document.run_id, document.tallies, settings)


def _note_told(run_id: int, tallies: Sequence[Tally], settings: "Settings") -> None:
    """Where the database is away, the next run says it again."""
    told = {tally.event_name for tally in tallies}
    meters = [key for key, meter in settings.meters.items() if meter.event_name in told]
    with suppress(MeterctlError), open_database(settings) as connection:
        note_told(connection, run_id, meters=meters, event_names=list(told))
