"""Clocks that jump, machines that sleep, signals: an old doubt is never taken for a young one."""

import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg

from cli.conftest import Shell
from meterctl.actions.answers import Answers
from meterctl.actions.collect import row_window
from meterctl.actions.deliver import Delivery, DeliveryLimits
from meterctl.actions.tally import Tally
from meterctl.clock import SystemHostClock
from meterctl.core.allowance import Allowance
from meterctl.core.model import Claim, Heard, MeterEvent, Outcome, OutcomeKind, State
from meterctl.core.pacing import OutageWatch, TokenBucket
from meterctl.dispatch import SerialDispatcher, ThreadedDispatcher
from meterctl.errors import ExitCode
from meterctl.postgres.identity import claim_ledger
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents
from several_meters import HOUR, job
from world import World


def test_a_database_clock_that_lags_sends_no_old_doubt_again(world: World, tmp_path: Path) -> None:
    """PostgreSQL's clock fell behind by 8 h: a doubt of 30 h looks like 22 h, and Stripe has forgotten the identifier.

    The run's first answer (whose account is it?) tells the time; nothing that rests on time may go out before.
    """
    with LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        shell = Shell(database_url=world.database_url, stripe=stripe, home=tmp_path)
        shell.usage(1, quantity=3)
        assert (shell.run("report-usage").code, shell.total) == (0, 3)
        world.connection.execute(  # as if the answer had been lost, 22 h ago by PostgreSQL's clock
            "UPDATE usage_events SET stripe_reported_at = NULL;"
            "UPDATE meterctl.meter_events SET state = 'in_doubt', ever_in_doubt = true, answers_heard = 0,"
            " accepted_at = NULL, settled_by = NULL, doubt_since = now() - interval '22 hours'"
        )
        stripe.clock.advance(30 * HOUR)
        finished = shell.run("report-usage")
        assert shell.total == 3, "billed twice"
        assert finished.code == ExitCode.UNAVAILABLE


def a_claim(n: int = 1) -> Claim:
    event = MeterEvent(
        id=n,
        event_name="m",
        customer=f"cus_{n}",
        identifier=f"i{n}",
        payload={"value": "1"},
        timestamp=datetime(2026, 11, 21, 2, tzinfo=UTC),
    )
    return Claim(
        event=event,
        run_id=1,
        attempt_count=1,
        answers_heard=0,
        claimed_from=State.PENDING,
        ever_in_doubt=False,
        source_row_id=None,
        quantity=Decimal(1),
        period_end=None,
    )


def test_a_stopped_run_does_not_sit_out_the_token_bucket() -> None:
    """SIGTERM under heavy throttling: claims that wait for their turn come back at once, not after minutes."""

    class Instant:
        def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:  # noqa: ARG002 -- the port's
            return Outcome(kind=OutcomeKind.ACCEPTED, heard=True, status=200)

    clock = SystemHostClock()
    dispatcher = ThreadedDispatcher(Instant(), TokenBucket(1.0), clock, in_flight_max=4)
    dispatcher.submit(
        [a_claim(n) for n in range(10)], claimed_elapsed_s=clock.elapsed_s(), claimed_wall_s=clock.wall_s()
    )
    time.sleep(0.2)
    dispatcher.cancel_queued()
    started, heard = time.monotonic(), list[Heard]()
    while dispatcher.outstanding:
        heard += dispatcher.heard(timeout_s=0.1)
    dispatcher.close()
    assert len(heard) == 10
    assert time.monotonic() - started < 1.5


class AllAtOnce(SerialDispatcher):
    """Answers whatever was submitted in one go."""

    most = 0

    def heard(self, *, timeout_s: float) -> list[Heard]:
        self.most = max(self.most, self.outstanding)
        heard = super().heard(timeout_s=timeout_s)
        while self.outstanding:
            heard += super().heard(timeout_s=0.0)
        return heard


def test_claims_ahead_stay_within_their_bound_when_retries_come_due(world: World) -> None:
    """Claims are at most twice the calls in flight: retries and new events share that room."""
    for n in range(40):
        world.customer(f"c{n:02}")
        for _ in range(20):
            world.usage(f"c{n:02}")
    settings = world.settings()
    owner = LedgerOwner(account=world.stripe.account_id, livemode=False)
    world.stripe.add_fault(Fault(kind=FaultKind.RATE_LIMITED, times=60))
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        claim_ledger(connection, owner, world.time.now())
        opened = job(settings, connection, owner, 1, "ai_suggestion", {})
        opened.source.collect(row_window(world.time.now(), recent=None), None, batch_size=1000, now=world.time.now())
        events = SingleEvents(stripe_client(settings.stripe, connections_max=1, read_timeout_s=1.0))
        dispatcher = AllAtOnce(events, TokenBucket(100.0), world.time)
        watch = OutageWatch(started_s=world.time.elapsed_s())
        tally = Tally(event_name="ai_suggestion")
        with MeterLocks(world.database_url, run_label="test", host_clock=world.time) as lock:
            Delivery(
                ledger=opened.ledger,
                dispatcher=dispatcher,
                clock=world.time,
                host_clock=world.time,
                limits=DeliveryLimits(deadline_s=world.time.elapsed_s() + 3600, grace=HOUR, in_flight_max=10),
                allowance=Allowance(None),
                answers=Answers(tally=tally, livemode=False, watch=watch, jitter=lambda: 0.5),
                stop=world.stop,
                lock=lock,
            ).run()
    assert tally.reported == 800
    assert dispatcher.most <= 2 * 10
