"""Ranges of time and what to ask Stripe about them: few questions, for it allows few reads. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from meterctl.core.settlement import MINUTE

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

PAGE_MAX = 100
"""Most summaries on a page (OpenAPI, event_summaries, `limit`); each page is a read."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Span:
    """A half-open range of time, aware UTC, whole minutes."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start

    def is_whole(self, unit: timedelta) -> bool:
        """Whether it is exactly one hour or UTC day, as `unit` says."""
        return self.length == unit and not (self.start - EPOCH) % unit


def cells(span: Span, unit: timedelta) -> list[Span]:
    """Return the span cut at every full hour or UTC day; its ends may be shorter than that."""
    found, start = [], span.start
    while start < span.end:
        end = min(start - (start - EPOCH) % unit + unit, span.end)
        found.append(Span(start=start, end=end))
        start = end
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What to ask Stripe at once. `unit` is the window to group by, which the span's bounds fit; None: one total."""

    span: Span
    unit: timedelta | None

    @property
    def read_count(self) -> int:
        """Pages that the answer may have."""
        return 1 if self.unit is None else -(-(self.span.length // self.unit) // PAGE_MAX)


def questions(span: Span, unit: timedelta) -> list[Question]:
    """Return the fewest questions that give a total for each of the span's cells."""
    parts = cells(span, unit)
    whole = [part for part in parts if part.is_whole(unit)]
    asked = [Question(span=part, unit=None) for part in parts if not part.is_whole(unit)]
    if whole:
        middle = Span(start=whole[0].start, end=whole[-1].end)
        asked.append(Question(span=middle, unit=unit if len(whole) > 1 else None))
    return sorted(asked, key=lambda question: question.span)


def halves(span: Span) -> tuple[Span, Span]:
    """Return the span cut in two at a whole minute; it is longer than one."""
    middle = span.start + span.length // 2 // MINUTE * MINUTE
    return Span(start=span.start, end=middle), Span(start=middle, end=span.end)
