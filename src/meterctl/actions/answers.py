"""What answers mean for the run: counts, further attempts, reasons to stop. The event's own fate is `core/state.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from meterctl.actions.tally import Tally
from meterctl.core.model import Heard, Outcome, OutcomeKind, SettledBy, State, clocks_apart
from meterctl.core.pacing import SILENCE_AGAIN_MAX_S, OutageWatch, RetryQueue
from meterctl.core.state import Transition, may_retry
from meterctl.errors import ExitCode
from meterctl.logs import get_logger

log = get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Why claiming ended before the work did. `whole_run`: no other meter may start either.

    `outage`: Stripe seemed away. One meter cannot tell that from a few customers whose events always fail, so the next
    meter tries as well, with less patience, and if it meets the same the run ends.
    """

    code: ExitCode
    reason: str
    whole_run: bool = True
    outage: bool = False


@dataclass(kw_only=True, slots=True)
class Answers:
    """The run's view of one meter's answers so far. `now_s` everywhere is the host clock's `elapsed_s`."""

    tally: Tally
    livemode: bool
    watch: OutageWatch
    jitter: Callable[[], float]
    retries: RetryQueue = field(default_factory=RetryQueue)
    stripe_date: datetime | None = None
    stopped: Stopped | None = None

    def note(self, one: Heard, after: Transition, *, now: datetime, now_s: float) -> None:
        """Take in one outcome and the transition it led to."""
        self._note_stripe(one.outcome, now)
        self._note_reach(one.outcome, now_s, success=after.moved_on)
        if after.moved_on:
            self.retries.settled(one.claim.event.id)
        else:
            self._note_unfinished(one, now_s)

    def stop_for_outage(self, verdict: str) -> None:
        """Claim nothing more of this meter; of no other either, if this is the second that finds Stripe away.

        A meter that had a success before it fell silent is not the second, but again the first.
        """
        again = self.watch.silence_max_s == SILENCE_AGAIN_MAX_S and not self.watch.has_succeeded
        self.stop(ExitCode.UNAVAILABLE, f"Stripe is away: {verdict}", whole_run=again, outage=True)

    def stop(self, code: ExitCode, reason: str, *, whole_run: bool = True, outage: bool = False) -> None:
        """Claim nothing more. The first reason stands."""
        if self.stopped is None:
            self.stopped = Stopped(code=code, reason=reason, whole_run=whole_run, outage=outage)
            log.warning("delivery_stopped", reason=reason, exit_code=int(code))

    def _note_stripe(self, outcome: Outcome, now: datetime) -> None:
        """Stripe's clock and mode, which its answers carry, must be the ones we count on."""
        if outcome.stripe_date is not None:
            self.stripe_date = outcome.stripe_date
            if (difference := clocks_apart(outcome.stripe_date, now)) is not None:
                self.stop(ExitCode.UNAVAILABLE, difference)
        if outcome.livemode is not None and outcome.livemode is not self.livemode:
            self.stop(ExitCode.CONFIGURATION, "Stripe answered in another mode than the run was started for")

    def _note_reach(self, outcome: Outcome, now_s: float, *, success: bool) -> None:
        if outcome.kind is not OutcomeKind.NOT_SENT:
            below_500 = outcome.heard and (outcome.status or 0) < 500  # noqa: PLR2004 -- HTTP's own border
            self.watch.heard(now_s=now_s, below_500=below_500, success=success)

    def count(self, one: Heard, after: Transition) -> None:
        """Count an event that moved on, once the ledger says so."""
        if after.state is State.REJECTED:
            self.tally.rejected += 1
            self.tally.problem(after.error_code or "rejected", [one.claim.source_row_id or one.claim.event.identifier])
            return
        self.tally.reported += 1
        self.tally.duplicate += after.settled_by is SettledBy.ALREADY_EXISTS
        self.tally.units += one.claim.quantity
        if after.late:
            self.tally.late += 1
            self.tally.note_late(1, one.claim.quantity)

    def _note_unfinished(self, one: Heard, now_s: float) -> None:
        """An attempt left its event open: try it again, give it up for this run, or stop the meter or the run."""
        outcome, event = one.outcome, one.claim.event
        if outcome.kind is OutcomeKind.NOT_PERMITTED:
            self.stop(ExitCode.NOT_PERMITTED, f"Stripe says {outcome.status}: {outcome.message}")
        elif outcome.kind is OutcomeKind.METER_UNAVAILABLE:
            self.stop(ExitCode.CONFIGURATION, f"Stripe has no active meter: {outcome.message}", whole_run=False)
        elif not (may_retry(outcome) or self._may_be_a_stored_answer(one)):
            self.retries.settled(event.id)
            self.tally.failed += outcome.kind is not OutcomeKind.NOT_SENT
        elif not self.retries.put(event.id, event.customer, now_s=now_s, jitter=self.jitter()):
            self.tally.failed += 1
            self.watch.exhausted()
        self._note_returned(outcome)

    def _may_be_a_stored_answer(self, one: Heard) -> bool:
        """Whether a rejection may be the replay of a lost one: under the next key Stripe judges the event anew."""
        rejected = one.outcome.kind is OutcomeKind.REJECTED
        return rejected and one.claim.older_doubt and not self.retries.was_tried(one.claim.event.id)

    def _note_returned(self, outcome: Outcome) -> None:
        """Faults of the run are not faults of an event: it stays due, and the next run takes it up."""
        returned = {OutcomeKind.NOT_SENT, OutcomeKind.NOT_PERMITTED, OutcomeKind.METER_UNAVAILABLE}
        self.tally.remaining += outcome.kind in returned
