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
from meterctl.core.settlement import Window
from meterctl.errors import ConfigurationError, MeterctlError
from meterctl.postgres.ledger_admin import retry, waive
from meterctl.postgres.settlements import assume, doubtable, put_in_doubt
from meterctl.postgres.sources import Sources
from meterctl.sandbox.local_stripe import FaultKind, RandomFaults
from simulation.company import Company, Founder
from simulation.mortal import Fate, Killed, MortalConnection, MortalEvents
from simulation.past import Past
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
    """One seed's company. `steps` is what happened, for whoever has to find out why."""

    world: World
    plain: psycopg.Connection
    seed: int
    founder: Founder
    steps: list[str] = field(default_factory=list)
    company: Company = field(init=False)
    chance: random.Random = field(init=False)
    fate: Fate = field(init=False)
    _depth: int = 0
    past: Past = field(init=False)

    def __post_init__(self) -> None:
        self.past = Past(connection=self.plain)
        self.chance = random.Random(self.seed)  # noqa: S311 -- repeatable, nothing secret
        self.fate = Fate(chance=self.chance)
        self.company = self.founder(self.world, self.chance, self.say)
        self.world.wrap_connection = lambda connection: MortalConnection(connection, self.fate)  # type: ignore[assignment, return-value] # all of a connection that we use
        self.world.wrap_events = lambda events: MortalEvents(events, self.fate, self._meanwhile)
        self.world.run_after_claim = self._perhaps_suspended

    def run(self) -> None:
        """Live through the nights, then come to rest."""
        self._found()
        for _ in range(self.chance.randint(2, 6)):
            self._night()
            self._perhaps_set_back()
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
        self.say(f"{len(self.company.names)} customers; Stripe: {options}, faults {', '.join(kinds)} at {faults.rate}")

    # The nights

    def _night(self) -> None:
        self.fate.kill_rate = self.chance.choice([0.0, 0.01, 0.03])
        self.fate.drop_rate = self.chance.choice([0.0, 0.0, 0.01])
        act = self.chance.choice([self._report, self._report, self._report, self._settle, self._doubt])
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
        """A person doubts a minute that Stripe has just accepted."""
        found = [event for event in self.world.events() if event["state"] == "accepted"]
        if found:
            event = self.chance.choice(found)
            minute = event["sent_timestamp"].replace(second=0, microsecond=0)
            window = Window(customer=event["customer"], minute=minute)
            ids = [one["id"] for one in doubtable(self.plain, event["event_name"], window)]
            self.say(f"ledger doubt {ids}")
            unstamp = self.world.rows_source(self.plain).unstamp
            put_in_doubt(self.plain, ids, "a person doubts", unstamp_rows=unstamp)

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
        self.fate.kill_rate = self.fate.drop_rate = 0.0
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
        for _ in range(40):
            if (
                not {"pending", "sending", "in_doubt", "rejected"} & set(self.world.states())
                and not self.company.is_due()
            ):
                return
            self._settle_what_is_held()
            self._retry()
            self.world.time.advance(timedelta(minutes=80))
            self._report(limited=False)
        raise AssertionError("the job does not come to rest")

    def _settle_what_is_held(self) -> None:
        known = {event.identifier for event in self.world.stripe.events() if event.counted}
        for event in self.world.events():
            if event["state"] == "in_doubt" and event["held_reason"] is not None:
                present = event["identifier"] in known
                self.say(f"a person says that {event['id']} is {'present' if present else 'absent'}")
                now = self.world.time.now()
                assume(self.plain, [event["id"]], present=present, reason="truth", now=now, grace=HOUR)

    def _retry(self) -> None:
        sources = Sources(connection=self.plain, settings=self.world.settings())
        for meter in self.company.meters:
            rejected = (one for one in self.world.events() if (one["state"], one["meter"]) == ("rejected", meter))
            if ids := [event["id"] for event in rejected]:
                self.say(f"ledger retry {ids}")
                refused = retry(self.plain, ids, sources.of(meter), meter, "mended", self.world.time.now()).refused
                self.say(f"  waived: {refused}")  # such as: older than the 35 days that Stripe takes
                waive(self.plain, list(refused), "nothing else can be done")
