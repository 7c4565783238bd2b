"""Deliver: claim, send, record, until the meter's lanes are empty or something says stop.

No transaction is open while the network is used. Each tick is one transaction: answers recorded, rows stamped, the next
events claimed. What an answer means for its event is decided in `core/state.py`, for the run in `actions/answers.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from meterctl.actions.answers import Answers
from meterctl.clock import Clock, HostClock
from meterctl.core.allowance import Allowance
from meterctl.core.model import PAST_LIMIT, RESEND_LIMIT, Heard
from meterctl.core.pacing import WAITING_MAX
from meterctl.core.state import Transition, advance
from meterctl.errors import ExitCode, UnavailableError
from meterctl.ports import Claimed, ClaimRequest, Dispatcher, Lock, MeterLedger, StopRequest

TICK_S = 0.03
"""How long a tick waits for the first answer; whatever else is in by then is recorded with it."""

IN_FLIGHT_MAX = 128
"""Calls at a time. The token bucket is the real limit."""

AHEAD_FACTOR = 2
"""Claims granted ahead of the calls in flight, so that a slow tick does not leave callers idle."""

SCAN_MIN = 64
"""Lanes looked through at a time even for a single claim: most may be held."""

BUSY_WAIT_S = 1.0
"""How long an event waits whose lane was taken when its next attempt was due."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryLimits:
    """What a run may do. `deadline_s` is in the host clock's seconds."""

    deadline_s: float
    grace: timedelta
    adopt_identifiers_until: datetime | None = None
    in_flight_max: int = IN_FLIGHT_MAX


@dataclass(kw_only=True, slots=True)
class Delivery:
    """One meter's delivery. `run` leaves no claim behind unless the process or the database dies."""

    ledger: MeterLedger
    dispatcher: Dispatcher
    clock: Clock
    host_clock: HostClock
    limits: DeliveryLimits
    allowance: Allowance
    answers: Answers
    stop: StopRequest
    lock: Lock
    progress: Callable[[], None] = lambda: None
    _after_customer: str = ""
    _scan_ended: bool = False
    _idle_customers: set[str] = field(default_factory=set)
    _oldest_lanes: dict[str, None] = field(default_factory=dict)

    def run(self) -> None:
        """Deliver what is due. Raises only when the ledger fails; then the next run takes over what was sent."""
        if self.allowance.left is not None:
            horizon = self.clock.now() - RESEND_LIMIT
            self._oldest_lanes = dict.fromkeys(self.ledger.oldest_lanes(self.allowance.left, doubt_horizon=horizon))
        while not self._finished():
            self._tick(self.dispatcher.heard(timeout_s=self._patience_s()))
            self.progress()
        self.answers.tally.failed += len(self.answers.retries)

    def _finished(self) -> bool:
        if self.dispatcher.outstanding:
            return False
        nothing_left = self._scan_ended and not self._idle_customers and not self.answers.retries
        return self.answers.stopped is not None or nothing_left or self._room() == 0

    def _patience_s(self) -> float:
        """Return how long to wait for answers: a tick, or where none can come until another attempt is due."""
        if self.dispatcher.outstanding:
            return TICK_S
        due_s = self.answers.retries.next_due_s()
        more_to_claim = len(self.answers.retries) < WAITING_MAX and (self._idle_customers or not self._scan_ended)
        if due_s is None or more_to_claim:
            return 0.0
        return min(1.0, max(0.0, due_s - self.host_clock.elapsed_s()))

    def _tick(self, heard: list[Heard]) -> None:
        now = self.clock.now()
        advanced = [(one, self._advance(one, now)) for one in heard]
        for one, after in advanced:
            self.answers.note(one, after, now=now, now_s=self.host_clock.elapsed_s())
            self.allowance.spend(after.moved_on)
            if self.answers.retries.lane_may_go_on(one.claim.event.customer):
                self._idle_customers.add(one.claim.event.customer)
        self._look_for_reasons_to_stop()
        request = self._request(now)
        elapsed_s, wall_s = self.host_clock.elapsed_s(), self.host_clock.wall_s()
        if advanced or request:
            claimed = self.ledger.exchange(advanced, request, now=now)
            self._count(advanced, claimed.recorded_ids)
            self.dispatcher.submit(claimed.claims, claimed_elapsed_s=elapsed_s, claimed_wall_s=wall_s)
            self._take(claimed, request)

    def _count(self, advanced: list[tuple[Heard, Transition]], recorded_ids: frozenset[int]) -> None:
        for one, after in advanced:
            if after.moved_on and one.claim.event.id in recorded_ids:
                self.answers.count(one, after)

    def _advance(self, one: Heard, now: datetime) -> Transition:
        return advance(
            one.claim,
            one.outcome,
            now=now,
            grace=self.limits.grace,
            adopt_identifiers_until=self.limits.adopt_identifiers_until,
        )

    def _look_for_reasons_to_stop(self) -> None:
        now_s = self.host_clock.elapsed_s()
        if self.stop.signal_number is not None:
            self.answers.stop(ExitCode(128 + self.stop.signal_number), "asked to stop")
        elif now_s >= self.limits.deadline_s:
            self.answers.stop(ExitCode.UNAVAILABLE, "the run's maximum duration is over")
        elif (verdict := self.answers.watch.verdict(now_s)) is not None:
            self.answers.stop_for_outage(verdict)
        try:
            self.lock.keep()
        except UnavailableError as error:
            self.answers.stop(ExitCode.UNAVAILABLE, error.message)
        if self.answers.stopped is not None:
            self.dispatcher.cancel_queued()

    def _request(self, now: datetime) -> ClaimRequest | None:
        """Return what to claim next, or None where there is nothing to ask for."""
        if self.answers.stopped is not None:
            return None
        retry_ids = self.answers.retries.take_due(self.host_clock.elapsed_s(), self._room())
        fresh_max = 0 if len(self.answers.retries) >= WAITING_MAX else self._room() - len(retry_ids)
        customers = self._customers(fresh_max)
        wanted = 0 if self._scan_ended or self._oldest_lanes else fresh_max - len(customers)
        if not retry_ids and not customers and not wanted:
            return None
        return ClaimRequest(
            fresh_max=fresh_max,
            customers=tuple(customers),
            scan_max=max(wanted, SCAN_MIN) if wanted else 0,
            after_customer=self._after_customer,
            retry_ids=tuple(retry_ids),
            now=now,
            doubt_since=min(now, self.answers.stripe_date or now),
            doubt_horizon=now - RESEND_LIMIT,
            expired_before=now - PAST_LIMIT,
        )

    def _customers(self, fresh_max: int) -> list[str]:
        """Return the idle lanes to go on with. Under a limit, lanes that had no turn yet come first, oldest first."""
        if self._oldest_lanes:
            return list(islice(self._oldest_lanes, fresh_max))
        if self.allowance.left is not None and not self._scan_ended:
            return []
        return sorted(self._idle_customers)[:fresh_max]

    def _room(self) -> int:
        """Return how many events may be claimed now. Under a limit, one that waits for its retry leaves its place."""
        ahead_max = AHEAD_FACTOR * self.limits.in_flight_max
        if self.allowance.left is not None:
            ahead_max = min(ahead_max, self.allowance.left)
        return max(0, ahead_max - self.dispatcher.outstanding)

    def _take(self, claimed: Claimed, request: ClaimRequest | None) -> None:
        """Note what was granted. A lost race is simply asked for again."""
        if request is None:
            return
        self._keep_waiting(request, claimed)
        if claimed.lost_race:
            self.host_clock.sleep(TICK_S)
            return
        self._idle_customers.difference_update(request.customers)
        for customer in request.customers:
            self._oldest_lanes.pop(customer, None)
        self._after_customer = claimed.after_customer
        self._scan_ended = self._scan_ended or (request.scan_max > 0 and claimed.scan_ended)

    def _keep_waiting(self, request: ClaimRequest, claimed: Claimed) -> None:
        """Retries whose lane was busy wait a little; those that nothing of ours kept from a claim are given up."""
        granted = {claim.event.id for claim in claimed.claims}
        left = [event_id for event_id in request.retry_ids if event_id not in granted]
        if self.dispatcher.outstanding or claimed.lost_race:
            self.answers.retries.requeue(left, at_s=self.host_clock.elapsed_s() + BUSY_WAIT_S)
            return
        for event_id in left:
            self.answers.retries.settled(event_id)
        self.answers.tally.failed += len(left)
