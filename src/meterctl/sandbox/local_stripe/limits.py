"""What holds calls back: a token bucket per mode, and one call at a time per customer and meter."""

from collections.abc import Callable

from meterctl.sandbox.local_stripe.clock import Real

Lane = tuple[bool, str, str]
"""Mode, meter id, customer: meter events of one lane are taken one after the other."""


class TokenBucket:
    """`rate` calls a second, at most one second's worth at once, by real time."""

    def __init__(self, monotonic: Callable[[], float] = Real.monotonic) -> None:
        self._monotonic = monotonic
        self._rate: float | None = None
        self._tokens = 0.0
        self._filled_at = 0.0

    def take(self, rate: float | None) -> bool:
        """Whether a call may pass now. A changed `rate` starts with a full bucket; None is no limit."""
        if rate != self._rate:
            self._rate, self._tokens, self._filled_at = rate, max(rate or 0, 1), self._monotonic()
        if rate is None:
            return True
        now = self._monotonic()
        self._tokens = min(max(rate, 1), self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Lanes:
    """The lanes that a call is going through right now."""

    def __init__(self) -> None:
        self._busy: set[Lane] = set()

    def enter(self, lane: Lane) -> bool:
        """Whether the lane was free; it is taken now."""
        if lane in self._busy:
            return False
        self._busy.add(lane)
        return True

    def leave(self, lane: Lane) -> None:
        """Free a lane."""
        self._busy.discard(lane)
