"""What the usage and the subscriptions say of a first night, in words."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from meterctl.core.diagnosis import Finding, passed, warned
from meterctl.core.schedule import missed
from meterctl.core.value import formatted
from meterctl.ports import KindCount, RowWindow

WAITING_MAX = timedelta(days=30)
"""Rows that wait longer than this are close to the 35 days, behind which Stripe takes nothing."""

RENEWALS_WITHIN = timedelta(days=31)
"""A month: within it every monthly subscription renews once."""


def waiting_window(usual: RowWindow) -> RowWindow:
    """Given the window of a run, return that of all rows, however old, that have waited too long by then."""
    oldest = usual.until - timedelta(days=365 * 100)
    return RowWindow(
        since=oldest, until=usual.until - WAITING_MAX, fresh_from=oldest, expired_before=usual.expired_before
    )


def waiting_rows(kinds: Sequence[KindCount], table: str) -> Iterator[Finding]:
    """Say what has waited for more than 30 days, those of free users aside."""
    for kind in kinds:
        what = f"{kind.event_count} rows of {table} (e.g. {', '.join(kind.sample_ids)})"
        if kind.outcome == "expired":
            message = (
                f"{what}, {formatted(kind.units)} units, were not reported within 35 days: Stripe takes them no more"
            )
            yield warned(message, "has another job billed them? docs/operating.md, Cut-over; else bill them by hand")
        elif kind.outcome in {"rejected", "refused"}:
            yield warned(f"{what}, older than 30 days, cannot be billed as they are", "`meterctl report -n` says why")
        else:
            message = f"{what}, {formatted(kind.units)} units, older than 30 days, wait to be reported"
            yield warned(message, "report them before they are 35 days old: Stripe takes none that are older")
    if not kinds:
        yield passed(f"no row of {table} has waited for more than 30 days")


def renewals(
    ends: Mapping[int | None, int], *, runs: Sequence[int], times: Sequence[str], grace: timedelta
) -> Iterator[Finding]:
    """Say how many periods that end soon are final before the next run starts; `ends` by minute of the UTC day."""
    known = {minute: count for minute, count in ends.items() if minute is not None}
    if None in ends:
        message = f"of {ends[None]} customers with a subscription in force no period's end is known"
        yield warned(f"{message}: what of them is late cannot be told", "fill in what the lookup's `period_end` names")
    total, lost = sum(known.values()), missed(known, runs, grace)
    schedule = f"your {' and '.join(times)} UTC run"
    renewals = f"{total} renewals this month ({RENEWALS_WITHIN.days} days); grace is {grace // timedelta(hours=1)} h"
    if lost:
        remedy = (
            "what is used before them would be on no invoice: report hourly (deploy/crontab) and say so, "
            "`--runs-at '*:30'`, or raise the grace in Stripe and `stripe.invoice_grace_h`"
        )
        yield warned(f"{schedule} misses {lost} of {renewals}", remedy)
    else:
        yield passed(f"{schedule} is in time for all {renewals}")
