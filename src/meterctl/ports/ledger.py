"""The ledger of one meter, as a run sees it: claims, answers, and what is left open."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from meterctl.core.model import Claim, Heard
from meterctl.core.state import Transition
from meterctl.ports.usage import KindCount


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest:
    """What to claim: events by id that wait for another attempt, then at most `fresh_max` this run has not tried.

    Those come one per lane: from the lanes of `customers`, then from as many as it takes of the next `scan_max` lanes
    behind `after_customer`.
    """

    fresh_max: int
    customers: tuple[str, ...]
    scan_max: int
    after_customer: str
    retry_ids: tuple[int, ...]
    now: datetime
    doubt_since: datetime
    doubt_horizon: datetime
    expired_before: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """Claims granted, and the lane that the scan reached.

    `lost_race`: another run claimed a lane at the same time, so nothing was granted this time. `recorded_ids`: events
    whose answers were written down; what became of the others, another run has written.
    """

    claims: tuple[Claim, ...] = ()
    after_customer: str = ""
    scan_ended: bool = True
    lost_race: bool = False
    recorded_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenCounts:
    """What is left of a meter: held up by a doubt, some of that for a person, and due but not tried by this run."""

    held_count: int
    problem_count: int
    problem_ids: tuple[str, ...]
    untried_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Undeliverable:
    """Open events of an event_name that no enabled meter has."""

    event_name: str
    event_count: int
    sample_ids: tuple[str, ...]


class MeterLedger(Protocol):
    """The ledger of one meter, as one run sees it."""

    def take_over(self) -> int:
        """Turn other runs' `sending` into `in_doubt`; the caller holds the meter's lock."""
        ...

    def expire(self, *, expired_before: datetime) -> list[str]:
        """Expire what was never processed and is too old now; return the rows' ids."""
        ...

    def supersede(self) -> int:
        """Give up what a newer level of its period has made worthless; return how many events."""
        ...

    def stamp(self, row_ids: Sequence[str], *, now: datetime) -> int:
        """Stamp usage rows whose event is accepted; locked rows are left for later. Return how many were stamped."""
        ...

    def oldest_lanes(self, lanes_max: int, *, doubt_horizon: datetime) -> list[str]:
        """Return the customers whose events have waited longest, at most `lanes_max`, longest first."""
        ...

    def exchange(
        self, answers: Sequence[tuple[Heard, Transition]], request: ClaimRequest | None, *, now: datetime
    ) -> Claimed:
        """Record answers, stamp accepted rows and claim what is next: one transaction."""
        ...

    def untold(self) -> list[KindCount]:
        """Return what runs rejected, let expire or sent late that did not live to say so."""
        ...

    def count_open(self, *, now: datetime) -> OpenCounts:
        """Return what a run leaves open."""
        ...
