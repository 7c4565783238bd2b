"""Nights under a plan drawn from a seed, and what must hold when the faults have stopped.

The real actions run on real PostgreSQL and over real HTTP against the local Stripe; delivery is serial and the clock
only moves when the plan moves it, so a seed makes the same nights again.
"""

import random
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from meterctl.cli.db_recover import recover_ledger
from meterctl.core.model import RESEND_LIMIT
from meterctl.errors import ConfigurationError, MeterctlError
from meterctl.postgres.error_reports import open_reports
from meterctl.sandbox.local_stripe import FaultKind, RandomFaults
from simulation.company import Company, Founder
from simulation.mortal import Fate, Killed, MortalConnection, MortalEvents
from simulation.past import Past
from simulation.person import Person
from simulation.validation import SOON, Validation
from world import VirtualTime, World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

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

MISLEADING = (FaultKind.LOST_ANSWER, FaultKind.RATE_LIMITED)
"""Together they tempt: the second says that nothing was processed, of an attempt that was not the first."""

PULL_EFFECTS_MAX = 60
"""Effects among which the last one of a pull is drawn: some live to their end."""

ROUNDS_MAX = 80
"""Runs until rest: Stripe refuses the identifier of what it dropped for up to two days, in which a doubt comes back."""

PAUSES = (timedelta(0), HOUR, 3 * HOUR, 10 * HOUR, 24 * HOUR, 30 * HOUR)


@dataclass(frozen=True, kw_only=True)
class SkewedClock:
    """Another host's stopwatch: it shows another time, and its sleep passes for everybody."""

    time: VirtualTime
    offset_s: float

    def elapsed_s(self) -> float:
        return self.time.elapsed_s() + self.offset_s

    def wall_s(self) -> float:
        return self.time.wall_s() - self.offset_s

    def sleep(self, seconds: float) -> None:
        self.time.sleep(seconds)


@dataclass(kw_only=True)
class Simulation:
    """One seed's company. `steps` is what happened, for whoever has to find out why.

    `validates`: its Stripe drops events after the 200, and reports them.
    """

    world: World
    plain: psycopg.Connection
    seed: int
    founder: Founder
    validates: bool = False
    steps: list[str] = field(default_factory=list)
    company: Company = field(init=False)
    chance: random.Random = field(init=False)
    fate: Fate = field(init=False)
    past: Past = field(init=False)
    person: Person = field(init=False)
    validation: Validation = field(init=False)
    pull_rate: float = 0.0
    _depth: int = 0

    def __post_init__(self) -> None:
        self.past = Past(connection=self.plain)
        self.chance = random.Random(self.seed)  # noqa: S311 -- repeatable, nothing secret
        self.fate = Fate(chance=self.chance)
        self.company = self.founder(self.world, self.chance, self.say)
        self.person = Person(world=self.world, plain=self.plain, chance=self.chance, say=self.say, company=self.company)
        self.validation = Validation(world=self.world, seed=self.seed, chance=self.chance, say=self.say)
        self.world.wrap_connection = lambda connection: MortalConnection(connection, self.fate)  # type: ignore[assignment, return-value] # all of a connection that we use
        self.world.wrap_events = lambda events: MortalEvents(events, self.fate, self._meanwhile, self._perhaps_pull)
        self.world.run_after_claim = self._after_claim

    def run(self) -> None:
        """Live through the nights, then come to rest."""
        self._found()
        for _ in range(self.chance.randint(2, 6)):
            self._night()
            self._perhaps_set_back()
            if self.validates:
                self.validation.tell()
        self._stop_faults()
        self._come_to_rest()

    def say(self, step: str) -> None:
        self.steps.append(f"{self.world.time.now():%d %H:%M:%S} {step}")

    def _found(self) -> None:
        options = self.company.found()
        self.world.stripe.set_options(**options)
        kinds = self.chance.choice([KINDS, KINDS, MISLEADING, tuple(self.chance.sample(KINDS, 2))])
        faults = RandomFaults(seed=self.seed, rate=self.chance.choice([0.1, 0.4, 0.7, 0.9]), kinds=kinds)
        self.world.stripe.set_random_faults(faults)
        if self.validates:
            self.validation.begin()
            self.pull_rate = self.chance.choice([0.0, 0.3, 0.6])
        self.say(f"{len(self.company.names)} customers; Stripe: {options}, faults {', '.join(kinds)} at {faults.rate}")

    # The nights

    def _night(self) -> None:
        self.fate.kill_rate = self.chance.choice([0.0, 0.01, 0.03])
        self.fate.drop_rate = self.chance.choice([0.0, 0.0, 0.01])
        told = [self._pull_and_die, self._retry, self._report] if self.validates else []
        act = self.chance.choice([self._report, self._report, self._report, self._settle, self._doubt, *told])
        with suppress(Killed, MeterctlError, psycopg.OperationalError):
            act()
        self.fate.kill_rate = self.fate.drop_rate = 0.0
        for _ in range(self.chance.randint(0, 3)):
            self.company.use(max_ago_min=120)
        self.company.something_happens()
        pause = self.chance.choice(PAUSES) if self.chance.random() < 0.97 else 36 * DAY
        self.world.time.advance(pause)
        self.say(f"{pause} later")

    def _report(self, *, limited: bool = True) -> None:
        options: dict[str, Any] = {"batch_size": self.chance.choice([1, 3, 500])}
        if limited and self.chance.random() < 0.3:
            options["limit"] = self.chance.randint(1, 5)
        self.say(f"report {options}, killed at {self.fate.kill_rate}, dropped at {self.fate.drop_rate}")
        result = self.world.run(**options)
        self.say(f"  → {result.exit_code!r} {result.totals.figures()}")

    def _settle(self) -> None:
        self.say("settle")
        for meter in self.company.meters:
            self.world.settle(meter)

    def _doubt(self) -> None:
        self.person.doubt_something()

    def _retry(self) -> None:
        """Not what the ledger would forget: what was sent in a lost future under a new identifier is nobody's."""
        if self.past.kept_at is None:
            self.person.retry()

    def _pull_and_die(self) -> None:
        """A process of its own, that dies by itself, and another pull comes for what it has left."""
        fate, self.fate = self.fate, Fate(chance=self.chance, dies_at=self.chance.randint(1, PULL_EFFECTS_MAX))
        try:
            with suppress(Killed, MeterctlError):
                self._pull()
        finally:
            self.fate = fate

    def _pull(self) -> None:
        self.say(f"  pull, dies at effect {self.fate.dies_at}")
        for acted in self.world.pull():
            self.say(f"    {acted.event.id} {acted.status}: {acted.outcome}")

    def _perhaps_pull(self) -> None:
        """In the midst of a run: what Stripe says may come before an answer is written down."""
        if self.pull_rate and self.chance.random() < self.pull_rate:
            if self.chance.random() < 0.5:
                self.validation.tell_of_the_last()
            self.world.time.advance(SOON)
            self._pull_and_die()

    def _perhaps_set_back(self) -> None:
        """The ledger is kept one night, and some nights later it is that again; then somebody recovers it."""
        now, ledger_is_there = self.world.time.now(), self.world.rows("SELECT FROM meterctl.identity")
        if self.past.kept_at is None and ledger_is_there and self.chance.random() < 0.2:
            self.say("the ledger is kept")
            self.past.keep(now)
        elif self.past.kept_at is not None and self.chance.random() < 0.4:
            since, self.past.kept_at = self.past.kept_at, None
            resend = now - since < 22 * HOUR and self.chance.random() < 0.5
            self.say(f"the ledger is set back to {since:%d %H:%M:%S}; recover, {resend=}")
            self.past.set_back()
            with pytest.raises(ConfigurationError):
                self.world.run()
            recover_ledger(self.plain, self.world.settings(), self.world.time, since=since, resend=resend)

    def _after_claim(self) -> None:
        self._perhaps_pull()
        self._perhaps_suspended()

    def _perhaps_suspended(self) -> None:
        """The machine sleeps between the claim and the look at its age.

        Not while the other host is at work: our own sender has looked then, and is about to send.
        """
        if self.fate.kill_rate and self.chance.random() < 0.02 and self._depth == 0:
            self.say("  the sender is suspended for 30 h")
            self.world.time.advance(30 * HOUR)

    def _meanwhile(self) -> None:
        """Another host, its clock askew, believes to hold the lock as well."""
        if self.fate.kill_rate and self._depth == 0 and self.chance.random() < 0.02:
            self._depth = 1
            self.say("  another host reports at the same time")
            skewed = SkewedClock(time=self.world.time, offset_s=self.chance.choice([-400.0, 0.0, 400.0]))
            try:
                with suppress(MeterctlError, psycopg.OperationalError):
                    self.world.run(locked=False, host_clock=skewed, batch_size=2)
            finally:
                self._depth = 0

    # Rest

    def _stop_faults(self) -> None:
        self.fate.kill_rate = self.fate.drop_rate = self.pull_rate = 0.0
        self.world.stripe.clear_faults()
        for name in self.company.names:
            with suppress(ValueError):
                self.world.stripe.create_customer(f"cus_{name}")
        self.say("the faults have stopped")
        self._report(limited=False)
        horizon = self._horizon()
        young = [
            event["id"]
            for event in self.world.events()
            if event["state"] == "in_doubt" and event["doubt_since"] > horizon and not self._waits(event)
        ]
        assert not young, f"one run with its retries leaves no young doubt: {young}"

    def _horizon(self) -> datetime:
        return self.world.time.now() - RESEND_LIMIT

    def _waits(self, event: dict[str, object]) -> bool:
        """Whether an older doubt of the customer and minute has to be decided first."""
        found = self.world.connection.execute(
            "SELECT FROM meterctl.meter_events"
            " WHERE event_name = %s AND customer = %s AND state = 'in_doubt' AND held_reason IS NULL"
            " AND doubt_since <= %s AND date_trunc('minute', sent_timestamp) = date_trunc('minute', %s::timestamptz)",
            [event["event_name"], event["customer"], self._horizon(), event["sent_timestamp"]],
        )
        return found.fetchone() is not None

    def _come_to_rest(self) -> None:
        """Nights without faults, a person who settles what is held by Stripe's truth and retries what was rejected."""
        for count in range(ROUNDS_MAX):
            if self.validates:
                self._pull_and_die()
                self._pull()
            if self._is_at_rest() and self._is_equal():
                return
            self.person.settle_what_is_held()
            self.person.retry()
            self.world.time.advance(timedelta(minutes=80) if count % 4 else 10 * HOUR)
            self._report(limited=False)
            self.validation.go_on()
        raise AssertionError("the job does not come to rest")

    def _is_at_rest(self) -> bool:
        is_open = {"pending", "sending", "in_doubt", "rejected"} & set(self.world.states())
        return not is_open and not self.company.is_due() and self.validation.has_ended

    def _is_equal(self) -> bool:
        """Once Stripe's totals have caught up: whether nothing falls short; else it is doubted."""
        self.world.time.advance(3 * HOUR)
        return not self.person.doubt_what_falls_short()

    def check(self) -> None:
        """Raise AssertionError unless all is billed once, and it is known what became of all that was reported."""
        self.company.check()
        self.validation.check()
        levels = [name for name, meter in self.world.settings().meters.items() if meter.formula == "last"]
        found = open_reports(self.plain, self.world.time.now(), levels)
        summed = [one for one in found if one.event_name not in levels]
        assert not summed, f"reports still open: {summed}"
