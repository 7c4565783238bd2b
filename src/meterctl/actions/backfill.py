"""Backfill: what reporting a past span would do, to be shown and agreed to before it is done."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from meterctl.actions.collect import LOOK_BACK, row_window
from meterctl.actions.preview import Plan, plan_of
from meterctl.core.level import LevelRequest
from meterctl.core.model import RESEND_LIMIT
from meterctl.core.scope import UsageSpan
from meterctl.core.value import formatted
from meterctl.errors import UnavailableError, UsageError
from meterctl.ports import KindCount, UsageSource
from meterctl.settings import GaugeMeter


@dataclass(frozen=True, kw_only=True, slots=True)
class BackfillPlan:
    """What backfilling the span would do; counts are of rows where the meter has rows, of events otherwise.

    `within` is the part of the span that Stripe still takes: nothing else is collected or delivered. `newer` counts
    customers whose level is left out, for a later one of the same period bills.
    """

    span: UsageSpan
    within: UsageSpan
    plan: Plan
    already_reported: int
    too_old: int
    newer: int


def require_past(span: UsageSpan, now: datetime) -> None:
    """Raise UsageError for a span that is empty, or not over."""
    if span.since >= span.until:
        raise UsageError("--since is not before --until", hint="the span is from --since up to, not including, --until")
    if span.until > now:
        raise UsageError(f"--until {span.until:%F %T}Z lies ahead", hint="reports take what is yet to come")


def last_level(meter: GaugeMeter, span: UsageSpan, now: datetime) -> LevelRequest:
    """Return what fills a gauge's gaps: a level at the last step of the span. Raises UsageError where there is none."""
    at = meter.step_start(span.last)
    if at < span.since:
        raise UsageError(
            f"no step of meter {meter.event_name} begins in the span; a level is reported at the start of each step",
            hint="name a longer span",
        )
    if at < now - LOOK_BACK:
        raise UsageError(f"the span's last step, {at:%F %T}Z, is too old", hint="Stripe takes the last 35 days only")
    return LevelRequest(at=at, gap=span)


def plan_backfill(
    event_name: str, source: UsageSource, span: UsageSpan, now: datetime, *, grace: timedelta
) -> BackfillPlan:
    """Return what backfilling the span at `now` would do. Nothing is written, nothing is sent."""
    within = UsageSpan(since=min(max(span.since, now - LOOK_BACK), span.until), until=span.until)
    kinds = _kinds(source, within, now, grace)
    counts = source.span_counts(row_window(now, recent=None, span=span))
    return BackfillPlan(
        span=span,
        within=within,
        plan=plan_of(event_name, kinds),
        already_reported=counts.reported,
        too_old=counts.too_old,
        newer=sum(kind.event_count for kind in kinds if kind.outcome == "newer"),
    )


def _kinds(source: UsageSource, within: UsageSpan, now: datetime, grace: timedelta) -> list[KindCount]:
    window = row_window(now, recent=None, span=within)
    return source.preview(window, doubt_horizon=now - RESEND_LIMIT, late_before=now - grace)


def require_as_shown(shown: BackfillPlan, source: UsageSource, now: datetime, *, grace: timedelta) -> None:
    """Raise UnavailableError if what would be sent now is not what was shown: nobody has agreed to that."""
    plan = plan_of(shown.plan.event_name, _kinds(source, shown.within, now, grace))
    if (plan.events, plan.units, plan.customers) != (shown.plan.events, shown.plan.units, shown.plan.customers):
        raise UnavailableError(
            f"{plan.event_name}: the usage of the span has changed since it was shown: now {plan.events} events,"
            f" {formatted(plan.units)} units",
            hint="nothing was sent; run it again, and look at what it shows",
        )
