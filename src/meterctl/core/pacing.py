"""How fast and how long to try: token bucket, backoff, when a run gives up. Clock readings are passed in seconds."""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

ATTEMPTS_MAX = 5
"""Attempts of one event in one run, as in the services meterctl replaces."""

BACKOFF_S = 5.0
"""Wait before the second attempt; it doubles with each further one."""

EXHAUSTED_IN_A_ROW_MAX = 3
"""So many events in a row without success are an outage, not bad luck."""

PROOF_OF_LIFE_S = 10.0
"""A success this recent shows that the far side is there, whatever else used up its attempts meanwhile."""

SILENCE_MAX_S = 60.0
"""Longest time without any answer below 500 before the far side counts as away."""

SILENCE_AGAIN_MAX_S = 20.0
"""The same for a meter that follows one whose delivery ended as an outage."""

LANE_WAITING_MAX = 50
"""Events of one customer that may wait for another attempt before its lane pauses: they must not crowd out others."""

WAITING_MAX = 10_000
"""Events that may wait for another attempt before nothing new is claimed: bounds the memory of a flaky night."""


def backoff_s(attempt: int, jitter: float) -> float:
    """Given the attempts made and a random number in [0, 1), return seconds to wait: 75-125 % of 5, 10, 20, 40."""
    return float(BACKOFF_S * 2 ** (attempt - 1) * (0.75 + jitter / 2))


@dataclass(slots=True)
class TokenBucket:
    """Calls per second, at most `rate_per_s`; halves on a 429, no more than once a second, and recovers by itself.

    Not thread-safe. `rate_per_s` None means unlimited until Stripe throttles.
    """

    rate_per_s: float | None
    recovery_per_s2: float = 20.0
    unlimited_start_per_s: float = 400.0
    _current: float | None = field(init=False)
    _next_s: float = field(init=False, default=0.0)
    _changed_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._current = self.rate_per_s

    def reserve(self, now_s: float) -> float:
        """Take the next free slot; return how many seconds from now it lies."""
        self._recover(now_s)
        if self._current is None:
            return 0.0
        slot_s = max(now_s, self._next_s)
        self._next_s = slot_s + 1.0 / self._current
        return slot_s - now_s

    def throttled(self, now_s: float) -> None:
        """Stripe answered 429: halve the rate, once for a burst of such answers."""
        if self._current is not None and now_s - self._changed_s < 1.0 and self._current != self.rate_per_s:
            return
        self._current = max(1.0, (self._current or self.unlimited_start_per_s) / 2)
        self._changed_s = now_s

    def _recover(self, now_s: float) -> None:
        if self._current is None or self._current == self.rate_per_s:
            return
        self._current += max(0.0, now_s - self._changed_s) * self.recovery_per_s2
        self._changed_s = max(now_s, self._changed_s)
        if self.rate_per_s is None:
            self._current = None if self._current >= self.unlimited_start_per_s else self._current
        else:
            self._current = min(self._current, self.rate_per_s)


@dataclass(slots=True)
class RetryQueue:
    """Events waiting for their next attempt in this run: how many attempts each has had, and whose they are."""

    _due: list[tuple[float, int]] = field(default_factory=list)
    _attempts: dict[int, int] = field(default_factory=dict)
    _lanes: dict[int, str] = field(default_factory=dict)
    _lane_counts: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._due)

    def put(self, event_id: int, customer: str, *, now_s: float, jitter: float) -> bool:
        """Queue the event for another attempt. Return False if it has had its last one."""
        attempts = self._attempts.get(event_id, 0) + 1
        if attempts >= ATTEMPTS_MAX:
            self.settled(event_id)
            return False
        self._attempts[event_id] = attempts
        if event_id not in self._lanes:
            self._lanes[event_id] = customer
            self._lane_counts[customer] += 1
        heapq.heappush(self._due, (now_s + backoff_s(attempts, jitter), event_id))
        return True

    def was_tried(self, event_id: int) -> bool:
        """Whether the event waits, or waited, for another attempt in this run."""
        return event_id in self._attempts

    def requeue(self, event_ids: Iterable[int], *, at_s: float) -> None:
        """Put back events whose claim was not granted; no attempt was made."""
        for event_id in event_ids:
            heapq.heappush(self._due, (at_s, event_id))

    def take_due(self, now_s: float, limit: int) -> list[int]:
        """Remove and return the ids whose time has come, at most `limit`."""
        due: list[int] = []
        while self._due and self._due[0][0] <= now_s and len(due) < limit:
            due.append(heapq.heappop(self._due)[1])
        return due

    def settled(self, event_id: int) -> None:
        """Forget an event that gets no further attempt."""
        self._attempts.pop(event_id, None)
        customer = self._lanes.pop(event_id, None)
        if customer is not None:
            self._lane_counts[customer] -= 1
            if not self._lane_counts[customer]:
                del self._lane_counts[customer]

    def lane_may_go_on(self, customer: str) -> bool:
        """Whether so few events of this customer wait that another may be tried."""
        return self._lane_counts[customer] < LANE_WAITING_MAX

    def next_due_s(self) -> float | None:
        """When the first waiting event is due; None if none waits."""
        return self._due[0][0] if self._due else None


@dataclass(slots=True)
class OutageWatch:
    """Tells an outage of the far side from the fault of a single event."""

    started_s: float
    silence_max_s: float = SILENCE_MAX_S
    _answered_s: float | None = None
    _unanswered: bool = False
    _exhausted: int = 0
    _succeeded_s: float | None = None

    @property
    def has_succeeded(self) -> bool:
        """Whether any attempt moved its event on."""
        return self._succeeded_s is not None

    def heard(self, *, now_s: float, below_500: bool, success: bool) -> None:
        """Note one attempt: whether an answer below 500 came, and whether it moved its event on."""
        if below_500:
            self._answered_s, self._unanswered = now_s, False
        else:
            self._unanswered = True
        if success:
            self._exhausted, self._succeeded_s = 0, now_s

    def exhausted(self) -> None:
        """Note an event that had its last attempt without success."""
        self._exhausted += 1

    def verdict(self, now_s: float) -> str | None:
        """Return why the far side counts as away, or None."""
        lives = self._succeeded_s is not None and now_s - self._succeeded_s < PROOF_OF_LIFE_S
        if self._exhausted >= EXHAUSTED_IN_A_ROW_MAX and not lives:
            return f"{self._exhausted} events in a row used up their {ATTEMPTS_MAX} attempts"
        since_s = self.started_s if self._answered_s is None else self._answered_s
        if self._unanswered and now_s - since_s >= self.silence_max_s:
            return f"no answer below 500 for {self.silence_max_s:.0f} s"
        return None
