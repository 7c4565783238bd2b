"""Carrying out claims: the only module with threads, and the serial implementation that a simulation can replay.

Both look at the claim's age last, right before the call: a machine that slept between claim and call must not send.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from meterctl.clock import HostClock
from meterctl.core.model import CLAIM_AGE_MAX, Claim, Heard, Outcome, OutcomeKind
from meterctl.core.pacing import TokenBucket
from meterctl.ports import MeterEvents

RATE_LIMITED_STATUS = 429


@dataclass(frozen=True, slots=True)
class _Job:
    claim: Claim
    claimed_elapsed_s: float
    claimed_wall_s: float


class _Caller:
    """One attempt: wait for a token, look at the claim's age, call."""

    def __init__(
        self, events: MeterEvents, bucket: TokenBucket, host_clock: HostClock, sleep: Callable[[float], object]
    ) -> None:
        self._events = events
        self._sleep = sleep
        self._bucket = bucket
        self._bucket_lock = threading.Lock()
        self._host_clock = host_clock
        self.stopped = False

    def attempt(self, job: _Job) -> Heard:
        outcome = self._paced(job)
        if outcome.status == RATE_LIMITED_STATUS:
            with self._bucket_lock:
                self._bucket.throttled(self._host_clock.elapsed_s())
        return Heard(claim=job.claim, outcome=outcome)

    def _paced(self, job: _Job) -> Outcome:
        with self._bucket_lock:
            wait_s = self._bucket.reserve(self._host_clock.elapsed_s())
        if wait_s > 0:
            self._sleep(wait_s)
        if self.stopped:
            return not_sent("the run is ending")
        if self._age_s(job) > CLAIM_AGE_MAX.total_seconds():
            return not_sent("the claim was too old to act on")
        return self._events.create(job.claim.event, idempotency_key=job.claim.idempotency_key)

    def _age_s(self, job: _Job) -> float:
        """The larger of both clocks' readings: either may stand still while the machine is suspended."""
        return max(self._host_clock.elapsed_s() - job.claimed_elapsed_s, self._host_clock.wall_s() - job.claimed_wall_s)


def not_sent(why: str) -> Outcome:
    """Return the outcome of a claim that was given back without a call."""
    return Outcome(kind=OutcomeKind.NOT_SENT, code="not_sent", message=why)


class SerialDispatcher:
    """One claim after another, in order, in the caller's thread."""

    def __init__(self, events: MeterEvents, bucket: TokenBucket, host_clock: HostClock) -> None:
        self._caller = _Caller(events, bucket, host_clock, host_clock.sleep)
        self._host_clock = host_clock
        self._jobs: deque[_Job] = deque()

    @property
    def outstanding(self) -> int:
        """How many submitted claims have not been handed back."""
        return len(self._jobs)

    def submit(self, claims: Sequence[Claim], *, claimed_elapsed_s: float, claimed_wall_s: float) -> None:
        """Queue claims."""
        self._jobs.extend(_Job(claim, claimed_elapsed_s, claimed_wall_s) for claim in claims)

    def heard(self, *, timeout_s: float) -> list[Heard]:
        """Carry out the next claim; wait out the time-out where there is none."""
        if not self._jobs:
            self._host_clock.sleep(timeout_s)
            return []
        return [self._caller.attempt(self._jobs.popleft())]

    def cancel_queued(self) -> None:
        """Send nothing more."""
        self._caller.stopped = True

    def close(self) -> None:
        """Nothing to free."""


class ThreadedDispatcher:
    """Up to `in_flight_max` calls at a time. Threads start as they are needed and end with `close`."""

    def __init__(self, events: MeterEvents, bucket: TokenBucket, host_clock: HostClock, *, in_flight_max: int) -> None:
        self._stopping = threading.Event()
        self._caller = _Caller(events, bucket, host_clock, self._stopping.wait)
        self._in_flight_max = in_flight_max
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: SimpleQueue[Heard | BaseException] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._outstanding = 0

    @property
    def outstanding(self) -> int:
        """How many submitted claims have not been handed back."""
        return self._outstanding

    def submit(self, claims: Sequence[Claim], *, claimed_elapsed_s: float, claimed_wall_s: float) -> None:
        """Queue claims, starting threads up to the limit."""
        self._outstanding += len(claims)
        while len(self._threads) < min(self._outstanding, self._in_flight_max):
            thread = threading.Thread(target=self._work, daemon=True, name=f"deliver-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()
        for claim in claims:
            self._jobs.put(_Job(claim, claimed_elapsed_s, claimed_wall_s))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._done.put(self._caller.attempt(job))
            except BaseException as error:  # noqa: BLE001 -- handed to the run's own thread, which raises it
                self._done.put(error)

    def heard(self, *, timeout_s: float) -> list[Heard]:
        """Return the outcomes that are in, waiting at most `timeout_s` for the first. Raises a thread's bug."""
        results: list[Heard] = []
        try:
            result = self._done.get(timeout=max(timeout_s, 0.001))
            while True:
                if isinstance(result, BaseException):
                    raise result
                results.append(result)
                result = self._done.get_nowait()
        except Empty:
            pass
        self._outstanding -= len(results)
        return results

    def cancel_queued(self) -> None:
        """Send nothing more: queued claims come back as not sent, those that wait for their turn included."""
        self._caller.stopped = True
        self._stopping.set()

    def close(self) -> None:
        """End the threads; those still in a call are daemons and do not hold up the process."""
        self.cancel_queued()
        for _ in self._threads:
            self._jobs.put(None)
