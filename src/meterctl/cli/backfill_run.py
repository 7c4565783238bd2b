"""A backfill from plan to result. Imported by the command, for it imports psycopg."""

import json
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from meterctl.actions.backfill import BackfillPlan, last_level, plan_backfill, require_as_shown, require_past
from meterctl.actions.tally import summed
from meterctl.cli.far_sides import FarSides, far_sides
from meterctl.cli.report_run import Errand, Job, carried_out, stop_on_signals, tell
from meterctl.cli.run_options import Asked, RunOptions, report_options
from meterctl.cli.stripe_wiring import rate_per_s
from meterctl.cli.wiring import confirmed_for, open_database
from meterctl.clock import SystemHostClock
from meterctl.core.allowance import Allowance
from meterctl.core.level import LevelRequest
from meterctl.core.scope import UsageSpan
from meterctl.errors import ExitCode, UsageError
from meterctl.logs import get_logger
from meterctl.postgres.check import require_fit
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.sources import Sources
from meterctl.render.backfill import backfill_dict, backfill_lines
from meterctl.render.report import ReportDocument
from meterctl.settings import GaugeMeter, RowsMeter

if TYPE_CHECKING:
    from meterctl.settings import Settings

log = get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class BackfillAsked:
    """The command line, parsed. `key` is the meter's in the configuration."""

    key: str
    span: UsageSpan
    before_cut_over: bool
    yes: bool
    confirm: str | None
    run: RunOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    """What was found, and the report that it takes."""

    shown: BackfillPlan
    report: Asked


def run_backfill(settings: "Settings", asked: BackfillAsked) -> int:
    """Plan, show, ask, deliver; return the exit code. Nothing is written before it was shown and agreed to."""
    if asked.before_cut_over:
        settings = _without_cut_over(settings, asked.key)
    if asked.run.dry_run or settings.stripe.api_key is None:
        return _dry_run(settings, asked)
    with far_sides(settings, [asked.key]) as far:
        planned = _planned(far.connection, settings, asked)
        if not (planned.shown.plan.events and _agreed(far, planned, asked)):
            return _tell_plan(settings, planned, asked)
        document = _delivered(far, planned, asked)
    tell(replace(document, plan=_as_json(settings, planned)), settings, planned.report)
    return document.exit_code


def _without_cut_over(settings: "Settings", key: str) -> "Settings":
    """Return the settings as if all usage were the meter's, whenever it happened."""
    meter = settings.meters[key]
    if not isinstance(meter, RowsMeter):
        return settings
    meters = {**settings.meters, key: meter.model_copy(update={"since": None})}
    return replace(settings, meters=meters)


def _dry_run(settings: "Settings", asked: BackfillAsked) -> int:
    """Show and do nothing. Also where Stripe is not configured, as for a report."""
    with open_database(settings) as connection:
        require_fit(connection, settings, [asked.key])
        planned = _planned(connection, settings, asked)
    if not asked.run.dry_run:
        log.warning("stripe_not_configured", hint="set STRIPE_SECRET_KEY; nothing was written or sent")
    return _tell_plan(settings, planned, asked)


def _planned(connection: Connection, settings: "Settings", asked: BackfillAsked) -> _Planned:
    """Find out what there is, and show it. Raises UsageError for a span that cannot be backfilled."""
    meter, now = settings.meters[asked.key], PostgresClock(connection, SystemHostClock()).now()
    require_past(asked.span, now)
    level = last_level(meter, asked.span, now) if isinstance(meter, GaugeMeter) else LevelRequest()
    source = Sources(connection=connection, settings=settings, level=level).of(asked.key)
    grace = timedelta(hours=settings.stripe.invoice_grace_h)
    shown = plan_backfill(meter.event_name, source, asked.span, now, grace=grace)
    _show(shown, settings, asked)
    _require_after_cut_over(shown, asked.key)
    options = replace(report_options(asked.run), span=shown.within)
    return _Planned(shown=shown, report=Asked(command="backfill", options=options, run=asked.run, level=level))


def _show(shown: BackfillPlan, settings: "Settings", asked: BackfillAsked) -> None:
    """Print the plan, beside the data where that is one document or nothing; not where nobody would read it."""
    run = asked.run
    if run.quiet and (asked.yes or run.dry_run):
        return
    lines = backfill_lines(shown, rate_per_s(settings))
    print(*lines, sep="\n", file=sys.stderr if run.as_json or run.quiet else sys.stdout, flush=True)


def _require_after_cut_over(shown: BackfillPlan, key: str) -> None:
    if shown.plan.before_since:
        raise UsageError(
            f"{shown.plan.before_since} unreported rows of the span lie before meters.{key}.since: whoever billed then"
            " may have billed them",
            hint="--since that instant leaves them out; --before-cut-over bills them",
        )


def _agreed(far: FarSides, planned: _Planned, asked: BackfillAsked) -> bool:
    question = f"Send these {planned.shown.plan.events} events?"
    owner = far.owner
    agreed = confirmed_for(owner.account, question, livemode=owner.livemode, yes=asked.yes, confirm=asked.confirm)
    if not agreed:
        print("nothing was done", file=sys.stderr)
    return agreed


def _delivered(far: FarSides, planned: _Planned, asked: BackfillAsked) -> ReportDocument:
    """Report the span, and nothing but what was shown of it."""
    shown = planned.shown
    errand = Errand(
        check=lambda job: require_as_shown(shown, job.source, far.clock.now(), grace=far.grace),
        expected=shown.plan.events,
    )
    with stop_on_signals() as stop:
        return carried_out(far, [asked.key], planned.report, Job(allowance=Allowance(None)), stop, errand)


def _tell_plan(settings: "Settings", planned: _Planned, asked: BackfillAsked) -> ExitCode:
    """End without having done anything."""
    tally = planned.shown.plan.tally
    document = ReportDocument(
        command="backfill",
        mode=settings.stripe.mode,
        dry_run=asked.run.dry_run,
        started_at=datetime.now(UTC),
        run_id=None,
        exit_code=ExitCode.OK,
        tallies=[tally],
        totals=summed([tally]),
        plan=_as_json(settings, planned),
    )
    if asked.run.as_json:
        print(json.dumps(document.as_dict()))
    return document.exit_code


def _as_json(settings: "Settings", planned: _Planned) -> list[dict[str, object]]:
    return [backfill_dict(planned.shown, rate_per_s(settings))]
