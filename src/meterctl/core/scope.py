"""What a run may be confined to."""

from dataclasses import dataclass
from datetime import datetime, timedelta

MICROSECOND = timedelta(microseconds=1)
"""The finest difference of two instants in PostgreSQL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageSpan:
    """Usage that happened in [since, until): half-open, aware UTC."""

    since: datetime
    until: datetime

    @property
    def last(self) -> datetime:
        """Its last instant."""
        return self.until - MICROSECOND


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """The rows with these ids; the usage of this span. By default all there is."""

    row_ids: tuple[str, ...] = ()
    span: UsageSpan | None = None
