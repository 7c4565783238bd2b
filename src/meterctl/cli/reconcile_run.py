"""Reconciling from the command line. Imported by the command, for it imports psycopg and the SDK."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from meterctl.actions.reading_plan import ReadingPlan, default_span, reading_plan
from meterctl.actions.reconcile import MeterSide, Reconciliation
from meterctl.cli.report import meters_called
from meterctl.cli.report_run import recorded_if_it_fails, stop_on_signals
from meterctl.cli.stripe_wiring import key_owner, summaries
from meterctl.cli.wiring import open_database
from meterctl.clock import SystemHostClock
from meterctl.core.spans import EPOCH, Span
from meterctl.errors import ExitCode, UsageError
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.identity import require_owner
from meterctl.postgres.reconciliations import PostgresReconciliations
from meterctl.postgres.runs import finish_run, start_run
from meterctl.render.reconcile import ReconcileDocument, show_plan, show_reconciled
from meterctl.settings import Settings
from meterctl.stripe_api.client import StripeClient, stripe_client


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line of `reconcile`, parsed."""

    meters: tuple[str, ...]
    customers: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    reads_max: int
    as_json: bool
    quiet: bool
    colour: bool


def compare_with_stripe(settings: Settings, asked: Asked) -> ExitCode:
    """Show the cost, compare, keep and show what was found."""
    keys = _comparable(settings, asked.meters)
    with open_database(settings) as connection, stop_on_signals() as stop:
        clock = PostgresClock(connection, SystemHostClock())
        span = _span(asked, clock.now())
        client = stripe_client(settings.stripe, connections_max=1)
        owner = key_owner(client, settings, clock)
        require_owner(connection, owner)
        run_id = start_run(connection, "reconcile", owner, clock.now())
        with recorded_if_it_fails(connection, run_id, clock):
            sides = _sides(connection, client, settings, keys, run_id)
            plan = _plan(sides, span, asked)
            if not asked.quiet:
                show_plan(plan, meter_count=len(sides))
            Reconciliation(
                sides={side.event_name: side for side in sides},
                plan=plan,
                clock=clock,
                may_go_on=lambda: not stop.requested,
            ).run()
        document = ReconcileDocument(plan=plan, sides=sides, signal_number=stop.signal_number)
        finish_run(connection, run_id, document.exit_code, document.counts(), clock.now())
    show_reconciled(document, as_json=asked.as_json, quiet=asked.quiet, colour=asked.colour)
    return document.exit_code


def _comparable(settings: Settings, names: tuple[str, ...]) -> list[str]:
    """Return the meters asked for; of a meter that bills its last value no total can be compared."""
    keys = meters_called(settings, names)
    levels = [key for key in keys if settings.meters[key].formula == "last"]
    if levels and names:
        raise UsageError(
            f"{', '.join(levels)} bills the last level only, of which there is no total to compare",
            hint="leave it out; `meterctl ledger list` shows what was accepted",
        )
    return [key for key in keys if key not in levels]


def _span(asked: Asked, now: datetime) -> Span:
    """Return what to compare. Raises UsageError unless it is whole minutes of the past."""
    usual = default_span(now)
    span = Span(start=asked.since or usual.start, end=asked.until or usual.end)
    for name, bound in (("--since", span.start), ("--until", span.end)):
        if bound.second or bound.microsecond:
            raise UsageError(f"{name} is no whole minute", hint="write it like 2026-12-01T02:17:00Z")
    if span.start < EPOCH:
        raise UsageError("--since lies before 1970, where Stripe's time begins", hint="without --since: 35 days ago")
    if span.start >= span.end:
        raise UsageError("--since is not before --until", hint="without --until it ends 75 minutes ago")
    if span.end > now:
        raise UsageError("--until lies in the future", hint="without --until it ends 75 minutes ago")
    return span


def _sides(
    connection: Connection, client: StripeClient, settings: Settings, keys: Sequence[str], run_id: int
) -> list[MeterSide]:
    meters = [settings.meters[key] for key in keys]
    return [
        MeterSide(
            event_name=meter.event_name,
            ledger=PostgresReconciliations(
                connection, event_name=meter.event_name, formula=meter.formula, run_id=run_id
            ),
            totals=summaries(client, settings, meter.event_name),
        )
        for meter in meters
    ]


def _plan(sides: Sequence[MeterSide], span: Span, asked: Asked) -> ReadingPlan:
    known = [one for side in sides for one in side.ledger.customers(span, asked.customers)]
    plan = reading_plan(known, span, reads_max=asked.reads_max)
    if known and not plan.chosen:
        raise UsageError(
            f"--max-reads {asked.reads_max} does not suffice for one customer, who costs {plan.reads_each}",
            hint="allow more, or shorten the range",
        )
    return plan
