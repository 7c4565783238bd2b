"""Settling by totals: which doubtful events a total of Stripe's contains. Pure; reading and writing are elsewhere.

Stripe forgets an identifier after at least 24 hours, so an old doubt cannot be settled by sending again. Its summary of
the customer and minute can: it either contains the event or does not. All that is decided here is arithmetic.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise

QUIET_MIN = timedelta(minutes=15)
"""How long before a read every event of the minute must have been attempted last."""

SERIES_MIN = timedelta(hours=1)
"""How long a series of equal reads must span. Together 75 minutes of lag in Stripe's summaries are outlasted; it calls
them "eventually consistent" without a figure, and public tests saw up to two minutes."""

MINUTE = timedelta(minutes=1)
"""The smallest range Stripe gives a total of (OpenAPI, event_summaries: bounds are minute-aligned)."""

UNDECIDED_MAX = timedelta(hours=72)
"""A doubt that is still undecided at this age is a person's to look at: two days of reads have settled nothing."""

DOUBLE_TOLERANCE = Decimal(2) ** -50
"""Relative error allowed for in a total: it is a JSON number, a double of 53 bits, perhaps added up from doubles."""

SUMS_MAX = 20_000
"""Sums tried for one minute. More doubts of different values than give that many are a person's to decide."""


class HeldReason(StrEnum):
    """Why a doubt is left to a person."""

    SHORTFALL = "shortfall"
    FOREIGN = "foreign"
    AMBIGUOUS = "ambiguous"
    IMPRECISE = "imprecise"
    TOO_OLD = "too_old"


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A customer and the minute that starts at `minute`, aware UTC: the smallest thing Stripe gives a total of."""

    customer: str
    minute: datetime

    @property
    def end(self) -> datetime:
        """Where the next minute starts."""
        return self.minute + MINUTE


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Equal reads of a window in a row."""

    id: int
    first_seen: datetime
    last_seen: datetime

    @property
    def is_long_enough(self) -> bool:
        """Whether it may decide."""
        return self.last_seen - self.first_seen >= SERIES_MIN


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """A doubtful event. `weight` is what it adds to the total if Stripe counted it: its value, or 1 where it counts."""

    id: int
    weight: Decimal
    period_end: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """What the ledger says of one customer and minute.

    `accepted` is the sum of what Stripe is known to have, `accepted_size` the sum of its absolute values.
    """

    accepted: Decimal
    accepted_size: Decimal
    doubts: tuple[Doubt, ...]
    last_attempt_at: datetime | None
    is_sending: bool

    @property
    def doubt_ids(self) -> tuple[int, ...]:
        """The doubtful events, by id."""
        return tuple(doubt.id for doubt in self.doubts)

    @property
    def admissible_from(self) -> datetime | None:
        """From when on a total read tells: Stripe had time to count what was sent last. None: at any time."""
        return self.last_attempt_at + QUIET_MIN if self.last_attempt_at else None

    def admits_read(self, at: datetime) -> bool:
        """Whether a total read at this instant tells."""
        return not self.is_sending and (self.admissible_from is None or self.admissible_from <= at)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldEvent:
    """A doubt that waits for a person, with the last reading of its minute; None where there never was one."""

    id: int
    event_name: str
    customer: str
    value: Decimal
    occurred_at: datetime
    held_reason: str
    identifier: str
    source_row_id: str | None
    stripe_total: Decimal | None
    accepted_total: Decimal | None
    read_count: int | None
    first_seen: datetime | None
    last_seen: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Which doubts Stripe has and which it has not; or, with `held_reason`, that a person must say."""

    present_ids: tuple[int, ...] = ()
    absent_ids: tuple[int, ...] = ()
    held_reason: HeldReason | None = None


def decide(total: Decimal, books: Books, window: Window) -> Verdict:
    """Given Stripe's total for the window, return what it proves about the doubts.

    Exactly one multiset of their weights must make up the difference to what is accepted. Which of several equal events
    Stripe has makes no difference to the bill: the lowest ids count as present. A weight of 0 makes none either way.
    """
    doubts = [doubt for doubt in books.doubts if doubt.weight]
    zero_ids = tuple(doubt.id for doubt in books.doubts if not doubt.weight)
    found = _matching(total, books, doubts)
    if isinstance(found, HeldReason):
        return Verdict(held_reason=found)
    present = _lowest_ids(found, doubts)
    if present and len(present) < len(doubts) and _is_divided(doubts, window):
        return Verdict(held_reason=HeldReason.AMBIGUOUS)
    absent = tuple(doubt.id for doubt in doubts if doubt.id not in present)
    return Verdict(present_ids=tuple(sorted((*zero_ids, *present))), absent_ids=absent)


Multiset = Mapping[Decimal, int]


def _matching(total: Decimal, books: Books, doubts: Sequence[Doubt]) -> Multiset | HeldReason:
    sums = _multisets_by_sum(doubts)
    if sums is None:
        return HeldReason.AMBIGUOUS
    tolerance = DOUBLE_TOLERANCE * max(abs(total), books.accepted_size + _size(doubts))
    if 2 * tolerance >= _least_gap(sums):
        return HeldReason.IMPRECISE
    missing = total - books.accepted
    fitting = [multisets for candidate, multisets in sums.items() if abs(missing - candidate) <= tolerance]
    if not fitting:
        return HeldReason.SHORTFALL if missing < 0 else HeldReason.FOREIGN
    return fitting[0][0] if len(fitting[0]) == 1 else HeldReason.AMBIGUOUS


def _multisets_by_sum(doubts: Sequence[Doubt]) -> dict[Decimal, list[Multiset]] | None:
    """Return every sum that some of the weights make, with up to two ways to make it; None if there are too many."""
    sums: dict[Decimal, list[Multiset]] = {Decimal(0): [{}]}
    weights = sorted(doubt.weight for doubt in doubts)
    for weight in dict.fromkeys(weights):
        extended: dict[Decimal, list[Multiset]] = {}
        for taken in range(weights.count(weight) + 1):
            for reached, multisets in sums.items():
                ways = extended.setdefault(reached + taken * weight, [])
                ways += [{**multiset, weight: taken} for multiset in multisets][: 2 - len(ways)]
        if len(extended) > SUMS_MAX:
            return None
        sums = extended
    return sums


def _size(doubts: Iterable[Doubt]) -> Decimal:
    return sum((abs(doubt.weight) for doubt in doubts), Decimal(0))


def _least_gap(sums: Iterable[Decimal]) -> Decimal:
    return min((higher - lower for lower, higher in pairwise(sorted(sums))), default=Decimal("Infinity"))


def _lowest_ids(multiset: Multiset, doubts: Sequence[Doubt]) -> tuple[int, ...]:
    left = dict(multiset)
    ids = []
    for doubt in sorted(doubts, key=lambda doubt: doubt.id):
        if left.get(doubt.weight):
            left[doubt.weight] -= 1
            ids.append(doubt.id)
    return tuple(ids)


def _is_divided(doubts: Sequence[Doubt], window: Window) -> bool:
    """Whether a billing period ends within the minute: then it matters which of equal events Stripe has."""
    ends = {doubt.period_end for doubt in doubts}
    return len(ends) > 1 or any(end is not None and window.minute < end < window.end for end in ends)
