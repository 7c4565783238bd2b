"""Nights under a plan drawn from a seed: crashes between any two effects, lost answers, stored 500s, throttling.

After the faults stop, the job runs to rest; then Stripe's totals, the ledger and the rows agree to the unit. A failure
prints its seed; the same seed makes the same night.
"""

import random
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from meterctl.core.model import MeterEvent, Outcome
from meterctl.errors import MeterctlError
from meterctl.ports import MeterEvents
from meterctl.sandbox.local_stripe import FaultKind, RandomFaults
from world import World, open_world

SEEDS = range(25)

KINDS = (
    FaultKind.LOST_ANSWER,
    FaultKind.RESET,
    FaultKind.ERROR_500,
    FaultKind.HTML,
    FaultKind.RATE_LIMITED,
    FaultKind.LOCK_TIMEOUT,
    FaultKind.CONFLICT,
    FaultKind.UNAUTHORIZED,
    FaultKind.NOT_FOUND,
    FaultKind.REQUEST_TIMEOUT,
)


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Mortal:
    """Calls that may be the last thing a process does, before or after the exchange with Stripe."""

    def __init__(self, events: MeterEvents, chance: random.Random, rate: float) -> None:
        self._events, self._chance, self._rate = events, chance, rate

    def _perhaps_die(self) -> None:
        if self._chance.random() < self._rate:
            raise Killed

    def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
        self._perhaps_die()
        outcome = self._events.create(event, idempotency_key=idempotency_key)
        self._perhaps_die()
        return outcome


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with open_world(database_url) as opened:
        yield opened


def populate(world: World, chance: random.Random) -> None:
    names = [f"c{n}" for n in range(chance.randint(1, 6))]
    for name in names:
        world.customer(name, user_id=name)
    if len(names) > 1:  # two subjects that pay through one customer
        world.connection.execute("UPDATE subscriptions SET stripe_customer_id = 'cus_c0' WHERE user_id = 'c1'")
    for _ in range(chance.randint(3, 25)):
        world.usage(
            chance.choice([*names, "free"]), chance.randint(0, 9), ago=timedelta(minutes=chance.randint(1, 2000))
        )


def night(world: World, chance: random.Random) -> None:
    """One run that may die at any effect; some hours pass, never so many that a doubt grows too old to send."""
    world.wrap_events = lambda events: Mortal(events, chance, 0.04)
    options: dict[str, Any] = {"batch_size": chance.choice([1, 3, 500])}
    if chance.random() < 0.3:
        options["limit"] = chance.randint(1, 5)
    with suppress(Killed, MeterctlError):
        world.run(**options)
    world.time.advance(timedelta(hours=chance.choice([0, 1, 3])))


@pytest.mark.parametrize("seed", SEEDS)
def test_after_the_faults_stop_every_unit_is_billed_once(world: World, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- repeatable, nothing secret
    populate(world, chance)
    world.stripe.set_random_faults(RandomFaults(seed=seed, rate=chance.choice([0.1, 0.4, 0.7]), kinds=KINDS))
    for _ in range(chance.randint(1, 5)):
        night(world, chance)
        if chance.random() < 0.5:
            world.usage("c0", chance.randint(1, 9))
    world.stripe.clear_faults()
    world.wrap_events = lambda events: events
    world.run()
    result = world.run()
    assert (result.totals.reported, result.totals.failed, result.totals.held) == (0, 0, 0), f"seed {seed}: not at rest"
    assert set(world.states()) <= {"accepted"}, f"seed {seed}"
    world.assert_exact()
    left = "SELECT count(*) AS n FROM usage_events WHERE stripe_reported_at IS NULL AND user_id <> 'free'"
    assert world.rows(left)[0]["n"] == 0, f"seed {seed}: a row was left behind"
    billed = world.rows("SELECT sum(quantity) AS units FROM usage_events WHERE user_id <> 'free'")[0]["units"]
    assert world.stripe_total() == (billed or 0), f"seed {seed}"
