"""Wiring of a report: adapters for its ports, the run's record, and what it prints."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING

from meterctl.actions.preview import preview
from meterctl.actions.report import MeterJob, Report
from meterctl.actions.tally import summed
from meterctl.cli.wiring import open_database
from meterctl.clock import SystemHostClock
from meterctl.core.model import clocks_apart
from meterctl.core.pacing import TokenBucket
from meterctl.dispatch import ThreadedDispatcher
from meterctl.errors import ConfigurationError, ExitCode, MeterctlError, UnavailableError
from meterctl.logs import get_logger
from meterctl.ports import Dispatcher, StopRequest
from meterctl.postgres.check import require_fit
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.ledger import PostgresMeterLedger, undeliverable
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.rows import LedgerOwner, PostgresRows
from meterctl.postgres.runs import claim_ledger, finish_run, require_owner, run_label, start_run
from meterctl.render.progress import delivery_progress
from meterctl.render.report import ReportDocument, show_plan, show_report
from meterctl.settings.meters import RowsMeter
from meterctl.stripe_api.account import answered_livemode, key_account
from meterctl.stripe_api.client import StripeClient, stripe_client
from meterctl.stripe_api.single import SingleEvents

if TYPE_CHECKING:
    from meterctl.cli.report import Asked
    from meterctl.settings import Settings

RATE_LIVE_PER_S = 800.0
"""Calls a second in live mode: below Stripe's 1,000 for meter events (rate-limit page)."""

RATE_TEST_PER_S = 20.0
"""Calls a second in test mode: meter events count to the basic limit there, 25 a second."""

CONNECTIONS_MAX = 128

log = get_logger()


def rate_per_s(settings: "Settings") -> float | None:
    """Return the pace of calls; None on loopback, where only the local Stripe sets limits."""
    if settings.stripe.api_base is not None:
        return None
    return RATE_LIVE_PER_S if settings.stripe.mode == "live" else RATE_TEST_PER_S


def dry_run(settings: "Settings", keys: Sequence[str], asked: "Asked", *, unsent: bool) -> int:
    """Show what a report would do. Also what happens where Stripe is not configured: count, write nothing, exit 0."""
    started_at = datetime.now(UTC)
    with open_database(settings) as connection:
        require_fit(connection, settings, keys)
        now = PostgresClock(connection, SystemHostClock()).now()
        owner = LedgerOwner(account="", livemode=settings.stripe.mode == "live")
        plans = [
            preview(
                rows_meter(settings, key).event_name,
                PostgresRows(connection, key, rows_meter(settings, key), settings.lookups, owner),
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
    show_plan(document, plans, rate_per_s=rate_per_s(settings), as_json=asked.as_json, quiet=asked.quiet)
    return ExitCode.OK


def real_run(settings: "Settings", keys: Sequence[str], asked: "Asked") -> ReportDocument:
    """Report for real, once. Nothing is written before account, mode and tables have been found to fit."""
    started_at = datetime.now(UTC)
    host_clock = SystemHostClock()
    with open_database(settings) as connection, stop_on_signals() as stop:
        require_fit(connection, settings, keys)
        client = stripe_client(settings.stripe, connections_max=CONNECTIONS_MAX)
        clock = PostgresClock(connection, host_clock)
        owner = _owner(client, settings, clock)
        require_owner(connection, owner)
        claim_ledger(connection, owner, clock.now())
        run_id = start_run(connection, asked.command, owner, clock.now())
        with MeterLocks(
            settings.database_url.get_secret_value(), run_label=run_label(), host_clock=host_clock
        ) as locks:
            report = Report(
                options=asked.options,
                livemode=owner.livemode,
                grace=timedelta(hours=settings.stripe.invoice_grace_h),
                clock=clock,
                host_clock=host_clock,
                locks=locks,
                dispatcher=_dispatchers(client, settings, host_clock),
                stop=stop,
                undeliverable=lambda: undeliverable(connection, _event_names(settings)),
            )
            with (
                recorded_if_it_fails(connection, run_id, clock),
                delivery_progress(wanted=not asked.quiet) as report.progress,
            ):
                result = report.run(_jobs(connection, settings, keys, owner, run_id, asked))
        finish_run(connection, run_id, result.exit_code, result.totals.figures(), clock.now())
    return ReportDocument(
        command=asked.command,
        mode=settings.stripe.mode,
        dry_run=False,
        started_at=started_at,
        run_id=run_id,
        exit_code=result.exit_code,
        tallies=result.tallies,
        totals=result.totals,
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


def _owner(client: StripeClient, settings: "Settings", clock: PostgresClock) -> LedgerOwner:
    """Return whose ledger it must be. Stripe's first answer also tells the time: a doubt must not look too young."""
    livemode = settings.stripe.mode == "live"
    account = key_account(client, settings.stripe)
    if account.stripe_date is not None and (difference := clocks_apart(account.stripe_date, clock.now())) is not None:
        raise UnavailableError(difference, hint="set the clock that is wrong; nothing is lost; run again")
    answered = answered_livemode(client)
    if answered is not None and answered is not livemode:
        raise ConfigurationError(
            f"Stripe answers in {'live' if answered else 'test'} mode, the run was started for {settings.stripe.mode}",
            hint="check the key and the address of Stripe",
        )
    return LedgerOwner(account=account.id, livemode=livemode)


def _jobs(
    connection: Connection,
    settings: "Settings",
    keys: Sequence[str],
    owner: LedgerOwner,
    run_id: int,
    asked: "Asked",
) -> Mapping[str, Callable[[], MeterJob]]:
    def opener(key: str) -> Callable[[], MeterJob]:
        return lambda: _job(connection, settings, key, owner, run_id, asked)

    return {rows_meter(settings, key).event_name: opener(key) for key in keys}


def _job(
    connection: Connection, settings: "Settings", key: str, owner: LedgerOwner, run_id: int, asked: "Asked"
) -> MeterJob:
    meter = rows_meter(settings, key)
    source = PostgresRows(connection, key, meter, settings.lookups, owner)
    ledger = PostgresMeterLedger(
        connection,
        meter=key,
        event_name=meter.event_name,
        run_id=run_id,
        stamp_rows=lambda row_ids, now: source.stamp(row_ids, now=now),
        row_ids=asked.options.row_ids,
    )
    return MeterJob(
        event_name=meter.event_name,
        source=source,
        ledger=ledger,
        adopt_identifiers_until=meter.adopt_identifiers_until,
    )


def _event_names(settings: "Settings") -> list[str]:
    return [meter.event_name for meter in settings.enabled_meters.values()]


def rows_meter(settings: "Settings", key: str) -> RowsMeter:
    """Return the meter, which `chosen_meters` has found to be of rows."""
    meter = settings.meters[key]
    assert isinstance(meter, RowsMeter)  # noqa: S101 -- chosen_meters refuses the others
    return meter


def _dispatchers(
    client: StripeClient, settings: "Settings", host_clock: SystemHostClock
) -> Callable[[], AbstractContextManager[Dispatcher]]:
    bucket = TokenBucket(rate_per_s(settings))

    @contextmanager
    def open_dispatcher() -> Iterator[Dispatcher]:
        dispatcher = ThreadedDispatcher(SingleEvents(client), bucket, host_clock, in_flight_max=CONNECTIONS_MAX)
        try:
            yield dispatcher
        finally:
            dispatcher.close()

    return open_dispatcher


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


def tell(document: ReportDocument, asked: "Asked") -> None:
    """Print the run's result and write its one canonical log line."""
    show_report(document, as_json=asked.as_json, quiet=asked.quiet)
    # On a terminal the table has said it; elsewhere a run that did not go well is logged even under -q.
    level = log.info if document.exit_code == ExitCode.OK or sys.stderr.isatty() else log.error
    level(
        "run_finished",
        run_id=document.run_id,
        command=document.command,
        exit_code=int(document.exit_code),
        **document.totals.figures(),
    )
