"""What `summary` names for a person: from the ledger, and from usage that cannot become an event as it is."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from meterctl.actions.collect import row_window
from meterctl.actions.tally import Tally, hint_for, late_hint
from meterctl.core.model import RESEND_LIMIT, Problem
from meterctl.postgres.connect import Connection
from meterctl.postgres.counter import unknown_usage
from meterctl.postgres.error_reports import open_reports
from meterctl.postgres.sources import Sources
from meterctl.postgres.stripe_events import event_store
from meterctl.postgres.summary import WINDOW, LedgerProblem, MeterFigures, ledger_owner, ledger_problems
from meterctl.render.values import iso
from meterctl.settings import Settings

Named = tuple[str, Problem]
"""The meter's event_name, or its key where no meter is configured; and the problem."""

NOT_IN_THE_LEDGER = {"refused", "uncounted"}
"""Outcomes of usage that every run looks at again. Rows that cannot be sent are rejected in the ledger instead."""

LEVELS_HINT = "Stripe rejected levels without naming them; the next ones take their place: `meterctl report-sensors`"


def open_problems(
    connection: Connection, settings: Settings, now: datetime, figures: Sequence[MeterFigures], only: Sequence[str]
) -> list[Named]:
    """Return all that is open of the meters with these figures; without `only`, of meters nobody configured, too."""
    return [
        *_in_ledger(ledger_problems(connection, now), figures),
        *(named for figure in figures for named in _of_figures(figure, settings)),
        *_of_reports(connection, settings, now, figures),
        *_of_usage(connection, settings, now, only),
        *(_unknown(connection, settings) if not only else ()),
        *(_failed_events(connection, settings, now) if not only else ()),
    ]


def _in_ledger(found: Sequence[LedgerProblem], figures: Sequence[MeterFigures]) -> Iterator[Named]:
    shown = {figure.event_name for figure in figures}
    for one in found:
        if one.event_name in shown:
            one.problem.hint = hint_for(one.problem.code)
            yield one.event_name, one.problem


def _of_figures(figure: MeterFigures, settings: Settings) -> Iterator[Named]:
    if figure.late:
        yield figure.event_name, Problem(code="late", count=figure.late, hint=late_hint(figure.late_units))
    still_open = figure.pending + figure.sending + figure.in_doubt
    if still_open and figure.event_name not in {meter.event_name for meter in settings.enabled_meters.values()}:
        hint = hint_for("unknown_meter")
        yield figure.event_name, Problem(code="unknown_meter", count=still_open, hint=hint)


def _of_reports(
    connection: Connection, settings: Settings, now: datetime, figures: Sequence[MeterFigures]
) -> Iterator[Named]:
    shown = {figure.event_name for figure in figures}
    for one in open_reports(connection, now, settings.levels):
        if one.event_name in shown:
            span = f" --since {iso(one.since)} --until {iso(one.until)}" if one.since else ""
            hint = LEVELS_HINT if one.since and one.event_name in settings.levels else hint_for(one.problem.code)
            one.problem.hint = hint.format(meter=one.event_name, span=span)
            yield one.event_name, one.problem


def _failed_events(connection: Connection, settings: Settings, now: datetime) -> Iterator[Named]:
    owner = ledger_owner(connection)
    livemode = owner[1] if owner else settings.stripe.mode == "live"
    count, samples = event_store(connection, settings).count_failed(livemode=livemode, since=now - WINDOW)
    if count:
        hint = hint_for("webhook_failed")
        yield "webhooks", Problem(code="webhook_failed", count=count, sample_ids=samples, hint=hint)


def _of_usage(connection: Connection, settings: Settings, now: datetime, only: Sequence[str]) -> Iterator[Named]:
    window, sources = row_window(now, recent=None), Sources(connection=connection, settings=settings)
    for key, meter in settings.enabled_meters.items():
        if meter.source == "rows" or (only and meter.event_name not in only):
            continue
        tally = Tally(event_name=meter.event_name)
        for kind in sources.of(key).preview(window, doubt_horizon=now - RESEND_LIMIT):
            if kind.outcome in NOT_IN_THE_LEDGER:
                tally.collected(kind)
        yield from ((meter.event_name, problem) for problem in tally.problems.values())


def _unknown(connection: Connection, settings: Settings) -> Iterator[Named]:
    counters = [key for key, meter in settings.enabled_meters.items() if meter.source == "counter"]
    for one in unknown_usage(connection, counters):
        samples, hint = list(one.sample_ids), hint_for("unknown_meter")
        yield (
            one.event_name,
            Problem(code="unknown_meter", count=one.event_count, sample_ids=samples, hint=hint),
        )
