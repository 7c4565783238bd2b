"""What reconciling will read, and what that costs: Stripe allows few reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from meterctl.core.model import PAST_LIMIT
from meterctl.core.reconciliation import SUMMARY_LAG
from meterctl.core.settlement import MINUTE
from meterctl.core.spans import DAY, Span, questions
from meterctl.ports import KnownCustomer


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingPlan:
    """Whom to compare, those first whose totals are unproven longest, at so many reads each.

    What is left of `reads_max` narrows differences; `left` are the customers it does not suffice for.
    """

    span: Span
    chosen: tuple[KnownCustomer, ...]
    left: tuple[KnownCustomer, ...]
    reads_each: int
    reads_max: int

    @property
    def read_count(self) -> int:
        """Reads before anything is narrowed."""
        return len(self.chosen) * self.reads_each


def default_span(now: datetime) -> Span:
    """Return what is compared unless told otherwise: as far back as Stripe takes usage, up to where totals lag."""
    return Span(start=full_from(now), end=now - SUMMARY_LAG - (now - SUMMARY_LAG - full_from(now)) % MINUTE)


def full_from(now: datetime) -> datetime:
    """Return from where on a comparison must look to look at everything: the UTC day of 35 days ago."""
    return (now - PAST_LIMIT).replace(hour=0, minute=0, second=0, microsecond=0)


def reading_plan(known: Sequence[KnownCustomer], span: Span, *, reads_max: int) -> ReadingPlan:
    """Return what comparing these customers day by day costs, and for whom the reads suffice."""
    reads_each = sum(question.read_count for question in questions(span, DAY))
    ordered = sorted(known, key=lambda one: (one.proven_until is not None, one.proven_until or span.start))
    count = reads_max // reads_each
    return ReadingPlan(
        span=span,
        chosen=tuple(ordered[:count]),
        left=tuple(ordered[count:]),
        reads_each=reads_each,
        reads_max=reads_max,
    )
