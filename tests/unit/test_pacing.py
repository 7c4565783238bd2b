"""How fast, how often, and when to give up. Time is an argument."""

import pytest

from meterctl.core.pacing import LANE_WAITING_MAX, OutageWatch, RetryQueue, TokenBucket, backoff_s


def test_a_bucket_spaces_calls_at_its_rate() -> None:
    bucket = TokenBucket(10.0)
    assert [round(bucket.reserve(0.0), 3) for _ in range(3)] == [0.0, 0.1, 0.2]
    assert bucket.reserve(5.0) == 0.0


def test_a_bucket_halves_once_for_a_burst_of_429_and_recovers() -> None:
    bucket = TokenBucket(100.0)
    for _ in range(20):
        bucket.throttled(0.0)
    assert (bucket.reserve(0.0), bucket.reserve(0.0)) == (0.0, pytest.approx(0.02))
    bucket.reserve(60.0)
    assert bucket.reserve(60.0) == pytest.approx(0.01)


def test_an_unlimited_bucket_slows_down_only_when_told() -> None:
    bucket = TokenBucket(None)
    assert [bucket.reserve(0.0) for _ in range(1000)] == [0.0] * 1000
    bucket.throttled(0.0)
    bucket.reserve(0.0)
    assert bucket.reserve(0.0) > 0
    bucket.reserve(3600.0)
    assert bucket.reserve(3600.0) == 0.0


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 40)])
def test_backoff_doubles_from_five_seconds(attempt: int, seconds: int) -> None:
    assert backoff_s(attempt, 0.5) == seconds
    assert backoff_s(attempt, 0.0) == 0.75 * seconds


def test_an_event_has_five_attempts_in_a_run() -> None:
    queue = RetryQueue()
    now_s, granted = 0.0, 1
    while queue.put(1, "cus", now_s=now_s, jitter=0.5):
        now_s += 100
        assert queue.take_due(now_s, 10) == [1]
        granted += 1
    assert (granted, len(queue)) == (5, 0)


def test_retries_come_due_in_their_order() -> None:
    queue = RetryQueue()
    queue.put(1, "cus", now_s=3.0, jitter=0.5)
    queue.put(2, "cus", now_s=0.0, jitter=0.5)
    assert queue.take_due(4.9, 10) == []
    assert queue.take_due(8.0, 1) == [2]
    assert queue.take_due(8.0, 1) == [1]


def test_three_exhausted_events_in_a_row_are_an_outage() -> None:
    watch = OutageWatch(started_s=0.0)
    watch.exhausted()
    watch.exhausted()
    watch.heard(now_s=1.0, below_500=True, success=True)
    watch.exhausted()
    watch.exhausted()
    assert watch.verdict(30.0) is None
    watch.exhausted()
    assert watch.verdict(30.0) is not None


def test_a_success_seconds_ago_shows_that_it_is_no_outage() -> None:
    watch = OutageWatch(started_s=0.0)
    watch.heard(now_s=1.0, below_500=True, success=True)
    for _ in range(3):
        watch.exhausted()
    assert watch.verdict(2.0) is None
    assert watch.verdict(12.0) is not None


def test_sixty_seconds_without_an_answer_below_500_are_an_outage() -> None:
    watch = OutageWatch(started_s=0.0)
    assert watch.verdict(1000.0) is None, "nothing was asked"
    watch.heard(now_s=1000.0, below_500=True, success=False)
    watch.heard(now_s=1010.0, below_500=False, success=False)
    assert watch.verdict(1059.0) is None
    assert watch.verdict(1060.0) is not None


def test_a_lane_with_many_waiting_events_pauses_until_one_is_settled() -> None:
    queue = RetryQueue()
    for event_id in range(LANE_WAITING_MAX):
        assert queue.lane_may_go_on("cus")
        queue.put(event_id, "cus", now_s=0.0, jitter=0.5)
    assert not queue.lane_may_go_on("cus")
    assert queue.lane_may_go_on("another")
    queue.settled(0)
    assert queue.lane_may_go_on("cus")
