"""Both implementations of the dispatcher keep the same promises."""

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from meterctl.clock import SystemHostClock
from meterctl.core.model import Claim, Heard, MeterEvent, Outcome, OutcomeKind, State
from meterctl.core.pacing import TokenBucket
from meterctl.dispatch import SerialDispatcher, ThreadedDispatcher


class Recorder:
    """A far side that notes what it was asked, and how many at a time."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.keys: list[str] = []
        self.at_a_time = self.at_a_time_max = 0
        self._pause_s = pause_s
        self._lock = threading.Lock()

    def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
        assert event.identifier in idempotency_key
        with self._lock:
            self.keys.append(idempotency_key)
            self.at_a_time += 1
            self.at_a_time_max = max(self.at_a_time, self.at_a_time_max)
        time.sleep(self._pause_s)
        with self._lock:
            self.at_a_time -= 1
        return Outcome(kind=OutcomeKind.ACCEPTED, heard=True, status=200)


AnyDispatcher = SerialDispatcher | ThreadedDispatcher
Make = Callable[[Recorder], AnyDispatcher]


@pytest.fixture(params=["serial", "threaded"])
def make(request: pytest.FixtureRequest) -> Make:
    clock = SystemHostClock()
    if request.param == "serial":
        return lambda events: SerialDispatcher(events, TokenBucket(None), clock)
    return lambda events: ThreadedDispatcher(events, TokenBucket(None), clock, in_flight_max=4)


def claims(count: int) -> list[Claim]:
    return [
        Claim(
            event=MeterEvent(
                id=n, event_name="m", customer=f"c{n}", identifier=f"i{n}", payload={}, timestamp=datetime.now(UTC)
            ),
            run_id=1,
            attempt_count=1,
            answers_heard=0,
            claimed_from=State.PENDING,
            ever_in_doubt=False,
            source_row_id=None,
            quantity=Decimal(1),
            period_end=None,
        )
        for n in range(count)
    ]


def submit(dispatcher: AnyDispatcher, work: Sequence[Claim], *, age_s: float = 0.0, wall_age_s: float = 0.0) -> None:
    clock = SystemHostClock()
    dispatcher.submit(work, claimed_elapsed_s=clock.elapsed_s() - age_s, claimed_wall_s=clock.wall_s() - wall_age_s)


def everything_heard(dispatcher: AnyDispatcher) -> list[Heard]:
    heard: list[Heard] = []
    while dispatcher.outstanding:
        heard += dispatcher.heard(timeout_s=0.05)
    dispatcher.close()
    return heard


def test_every_claim_comes_back_once(make: Make) -> None:
    events = Recorder()
    dispatcher = make(events)
    submit(dispatcher, claims(50))
    heard = everything_heard(dispatcher)
    assert sorted(one.claim.event.id for one in heard) == list(range(50))
    assert sorted(events.keys) == sorted(f"i{n}:0" for n in range(50))


@pytest.mark.parametrize(("age_s", "wall_age_s"), [(301.0, 0.0), (0.0, 301.0)])
def test_a_claim_older_than_five_minutes_is_not_sent(make: Make, age_s: float, wall_age_s: float) -> None:
    """Either clock may stand still while the machine is suspended; the larger reading counts."""
    events = Recorder()
    dispatcher = make(events)
    submit(dispatcher, claims(1), age_s=age_s, wall_age_s=wall_age_s)
    assert [one.outcome.kind for one in everything_heard(dispatcher)] == [OutcomeKind.NOT_SENT]
    assert events.keys == []


def test_cancelled_claims_come_back_unsent(make: Make) -> None:
    events = Recorder(pause_s=0.02)
    dispatcher = make(events)
    submit(dispatcher, claims(30))
    dispatcher.cancel_queued()
    heard = everything_heard(dispatcher)
    assert len(heard) == 30
    unsent = [one for one in heard if one.outcome.kind is OutcomeKind.NOT_SENT]
    assert len(unsent) + len(events.keys) == 30
    assert len(unsent) >= 26


def test_threads_are_bounded() -> None:
    events = Recorder(pause_s=0.01)
    dispatcher = ThreadedDispatcher(events, TokenBucket(None), SystemHostClock(), in_flight_max=4)
    submit(dispatcher, claims(40))
    everything_heard(dispatcher)
    assert events.at_a_time_max == 4


def test_a_bug_in_a_thread_reaches_the_run() -> None:
    class Broken:
        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
            raise ZeroDivisionError(event.identifier + idempotency_key)

    dispatcher = ThreadedDispatcher(Broken(), TokenBucket(None), SystemHostClock(), in_flight_max=2)
    submit(dispatcher, claims(1))
    with pytest.raises(ZeroDivisionError):
        dispatcher.heard(timeout_s=5.0)
    dispatcher.close()
