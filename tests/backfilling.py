"""A backfill on a world: planned as the command plans it, then carried out under its span."""

from datetime import datetime, timedelta

from meterctl.actions.backfill import BackfillPlan, last_level, plan_backfill
from meterctl.actions.report import ReportResult
from meterctl.core.level import LevelRequest
from meterctl.core.scope import UsageSpan
from meterctl.postgres.sources import Sources
from meterctl.settings import GaugeMeter
from world import World

GRACE = timedelta(hours=1)


def planned(world: World, key: str, since: datetime, until: datetime) -> tuple[BackfillPlan, LevelRequest]:
    """What the command shows, and what it asks of a gauge."""
    settings, span, now = world.settings(), UsageSpan(since=since, until=until), world.time.now()
    meter = settings.meters[key]
    level = last_level(meter, span, now) if isinstance(meter, GaugeMeter) else LevelRequest()
    source = Sources(connection=world.connection, settings=settings, level=level).of(key)  # type: ignore[arg-type] # only the row factory differs
    return plan_backfill(meter.event_name, source, span, now, grace=GRACE), level


def backfilled(world: World, key: str, since: datetime, until: datetime) -> tuple[BackfillPlan, ReportResult]:
    """Show, then do: the world's only enabled meter."""
    shown, level = planned(world, key, since, until)
    return shown, world.run(span=shown.within, level=level)
