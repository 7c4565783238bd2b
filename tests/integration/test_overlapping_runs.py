"""The lock is courtesy: two runs that both believe to hold it still bill every unit once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from meterctl.actions.meter_report import ReportOptions
from meterctl.actions.report import Report, ReportResult
from meterctl.cli.meter_wiring import MeterWiring
from meterctl.clock import SystemHostClock
from meterctl.core.pacing import TokenBucket
from meterctl.dispatch import ThreadedDispatcher
from meterctl.ports import Dispatcher, StopRequest
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.identity import claim_ledger
from meterctl.postgres.runs import start_run
from meterctl.postgres.sources import Sources
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.sandbox.local_stripe import FaultKind, RandomFaults
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents
from world import Everybodys, World, open_world

LANES, EVENTS = 15, 240


@pytest.fixture
def real_time_world(database_url: str) -> Iterator[World]:
    with open_world(database_url) as world:
        real = SystemHostClock()
        world.stripe.clock.reset()
        with psycopg.connect(database_url, autocommit=True) as connection:
            world.time.instant = PostgresClock(connection, real).now()
        for n in range(LANES):
            world.customer(f"c{n}")
        for n in range(EVENTS):
            world.usage(f"c{n % LANES}", 1 + n % 3)
        world.stripe.set_options(latency_ms=5)
        yield world


def one_run(world: World) -> ReportResult:
    settings, host_clock = world.settings(), SystemHostClock()
    owner = LedgerOwner(account=world.stripe.account_id, livemode=False)
    events = SingleEvents(stripe_client(settings.stripe, connections_max=8, read_timeout_s=5.0))

    @contextmanager
    def dispatcher() -> Iterator[Dispatcher]:
        opened = ThreadedDispatcher(events, TokenBucket(None), host_clock, in_flight_max=8)
        yield opened
        opened.close()

    with psycopg.connect(world.database_url, autocommit=True) as connection:
        clock = PostgresClock(connection, host_clock)
        claim_ledger(connection, owner, clock.now())
        run_id = start_run(connection, "report", owner, clock.now())
        report = Report(
            options=ReportOptions(batch_size=50),
            livemode=False,
            grace=timedelta(hours=1),
            clock=clock,
            host_clock=host_clock,
            locks=Everybodys(),
            dispatcher=dispatcher,
            stop=StopRequest(),
            jitter=lambda: 0.0,
            undeliverable=lambda: (),
        )
        sources = Sources(connection=connection, settings=settings, owner=owner)
        return report.run(world.jobs(MeterWiring(sources=sources, run_id=run_id)))


@pytest.mark.parametrize("faults", [False, True])
def test_three_runs_at_once_without_a_lock_bill_once(real_time_world: World, faults: bool) -> None:  # noqa: FBT001 -- a table
    world = real_time_world
    if faults:
        kinds = (FaultKind.LOST_ANSWER, FaultKind.RESET, FaultKind.LOCK_TIMEOUT)
        world.stripe.set_random_faults(RandomFaults(seed=1, rate=0.1, kinds=kinds, per_identifier_max=1))
    threads = [threading.Thread(target=one_run, args=(world,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    world.stripe.clear_faults()
    one_run(world)
    assert set(world.states()) == {"accepted"}
    assert len(world.events()) == EVENTS
    assert world.stripe_total() == sum(1 + n % 3 for n in range(EVENTS))
    world.assert_exact()
