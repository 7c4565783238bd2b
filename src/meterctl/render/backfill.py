"""How the plan of a backfill is told, before anything is done."""

from collections.abc import Iterator

from meterctl.actions.backfill import BackfillPlan
from meterctl.render.report import plan_dict, plan_lines
from meterctl.render.values import iso


def backfill_dict(found: BackfillPlan, rate_per_s: float | None) -> dict[str, object]:
    """Return the plan as `--json` has it: that of a report, and what else there is in the span."""
    return plan_dict(found.plan, rate_per_s) | {
        "since": iso(found.span.since),
        "until": iso(found.span.until),
        "already_reported": found.already_reported,
        "too_old": found.too_old,
        "late": found.plan.late,
        "newer": found.newer,
    }


def backfill_lines(found: BackfillPlan, rate_per_s: float | None) -> Iterator[str]:
    """Yield the lines that a person reads before agreeing."""
    yield from plan_lines(found.plan, rate_per_s)
    yield f"  usage from {iso(found.span.since)} up to, not including, {iso(found.span.until)}"
    yield f"  already reported: {found.already_reported}"
    yield f"  too old for Stripe: {found.too_old}"
    yield f"  late: {found.plan.late}" + (", which is on no invoice any more" if found.plan.late else "")
    if found.newer:
        yield f"  left out: {found.newer} customers of whose period a newer level bills"
