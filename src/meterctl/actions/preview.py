"""Preview: what a report would do, read in a transaction PostgreSQL itself holds READ ONLY."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from meterctl.actions.collect import row_window
from meterctl.actions.tally import Tally
from meterctl.core.model import RESEND_LIMIT
from meterctl.ports import KindCount, UsageSource


@dataclass(kw_only=True, slots=True)
class Plan:
    """What one meter's report would send. `calls` is one per event; `customers` counts distinct ones.

    `before_since` counts unreported rows that are not the meter's, since they lie before its `since`; `late` the events
    whose invoice is final, where that was asked.
    """

    event_name: str
    tally: Tally
    events: int = 0
    units: Decimal = Decimal(0)
    customers: int = 0
    oldest: datetime | None = None
    late: int = 0
    before_since: int = 0
    held_ids: list[str] = field(default_factory=list)

    def minutes(self, rate_per_s: float | None) -> float | None:
        """Return how long the calls take at the rate limit; None where there is none."""
        return None if rate_per_s is None else round(self.events / rate_per_s / 60, 1)


def preview(
    event_name: str,
    source: UsageSource,
    now: datetime,
    *,
    recent: timedelta | None,
    row_ids: tuple[str, ...] = (),
    limit: int | None = None,
) -> Plan:
    """Return what a report of this meter would do at `now`. Nothing is written, nothing is sent."""
    window = row_window(now, recent=recent, row_ids=row_ids)
    plan = plan_of(event_name, source.preview(window, doubt_horizon=now - RESEND_LIMIT))
    if limit is not None:
        plan.events = min(plan.events, limit)
    return plan


def plan_of(event_name: str, kinds: Iterable[KindCount]) -> Plan:
    """Given what collecting and delivering would do, return the plan of it."""
    plan = Plan(event_name=event_name, tally=Tally(event_name=event_name))
    for kind in kinds:
        _note(plan, kind)
    plan.tally.remaining = plan.events
    return plan


def _note(plan: Plan, kind: KindCount) -> None:
    if kind.outcome == "pending":
        plan.events += kind.event_count
        plan.units += kind.units
        plan.late += kind.late_count
        plan.customers = max(plan.customers, kind.customer_count)
        plan.oldest = min((i for i in (plan.oldest, kind.oldest) if i), default=None)
    elif kind.outcome == "before_since":
        plan.before_since += kind.event_count
    else:
        plan.tally.collected(kind)
