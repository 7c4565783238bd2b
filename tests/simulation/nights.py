"""Nights under a plan drawn from a seed, and what must hold when the faults have stopped.

The real actions run on real PostgreSQL and over real HTTP against the local Stripe; delivery is serial and the clock
only moves when the plan moves it, so a seed makes the same nights again.
"""

import random
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from meterctl.actions.collect import EXPIRED_LOOK_BACK
from meterctl.cli.db_recover import recover_ledger
from meterctl.core.model import RESEND_LIMIT
from meterctl.core.settlement import Window
from meterctl.errors import ConfigurationError, MeterctlError
from meterctl.postgres.ledger_admin import retry, waive
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.settlements import assume, doubtable, put_in_doubt
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.sandbox.local_stripe import FaultKind, RandomFaults
from meterctl.settings import RowsMeter
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
FREE = "free"


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
    steps: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    chance: random.Random = field(init=False)
    fate: Fate = field(init=False)
    _depth: int = 0

    past: Past = field(init=False)

    def __post_init__(self) -> None:
        self.past = Past(connection=self.plain)
        self.chance = random.Random(self.seed)  # noqa: S311 -- repeatable, nothing secret
        self.fate = Fate(chance=self.chance)
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

    # The company

    def _found(self) -> None:
        self.names = [f"c{n}" for n in range(self.chance.randint(1, 5))]
        for name in self.names:
            self.world.customer(name, known=self.chance.random() < 0.8)
        if len(self.names) > 1:
            self._pay_through("c0", "c1")
        for _ in range(self.chance.randint(3, 15)):
            self._use(max_ago_min=2000)
        options = {"summary_lag_s": self.chance.choice([0, 300, 75 * 60]), "identifier_window_h": 24.0}
        options["identifier_window_h"] = self.chance.choice([24.0, 48.0])
        self.world.stripe.set_options(**options)
        kinds = self.chance.choice([KINDS, KINDS, MISLEADING, tuple(self.chance.sample(KINDS, 2))])
        faults = RandomFaults(seed=self.seed, rate=self.chance.choice([0.1, 0.4, 0.7, 0.9]), kinds=kinds)
        self.world.stripe.set_random_faults(faults)
        self.say(f"{len(self.names)} customers; Stripe: {options}, faults {', '.join(kinds)} at {faults.rate}")

    def _pay_through(self, customer: str, user: str) -> None:
        """Two subjects, one who pays."""
        self.world.connection.execute(
            "UPDATE subscriptions SET stripe_customer_id = %s WHERE user_id = %s", [f"cus_{customer}", user]
        )

    def _use(self, *, max_ago_min: int) -> None:
        """Usage, often in a minute that has some already."""
        user, quantity = self.chance.choice([*self.names, FREE]), self.chance.choice([0, 1, 1, 2, 3, 9])
        minutes = self.chance.choice([5, 5, 7, self.chance.randint(1, max_ago_min)])
        self.world.usage(user, quantity, ago=timedelta(minutes=minutes, seconds=self.chance.randint(0, 20)))

    # The nights

    def _night(self) -> None:
        self.fate.kill_rate = self.chance.choice([0.0, 0.01, 0.03])
        self.fate.drop_rate = self.chance.choice([0.0, 0.0, 0.01])
        act = self.chance.choice([self._report, self._report, self._report, self._settle, self._doubt])
        with suppress(Killed, MeterctlError, psycopg.OperationalError):
            act()
        self.fate.kill_rate = self.fate.drop_rate = 0.0
        for _ in range(self.chance.randint(0, 3)):
            self._use(max_ago_min=120)
        self._something_happens()
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
        self.world.settle()

    def _doubt(self) -> None:
        """A person doubts a minute that Stripe has just accepted."""
        accepted = "SELECT customer, sent_timestamp FROM meterctl.meter_events WHERE state = 'accepted' ORDER BY id"
        found = self.world.rows(accepted)
        if found:
            event = self.chance.choice(found)
            minute = event["sent_timestamp"].replace(second=0, microsecond=0)
            window = Window(customer=event["customer"], minute=minute)
            ids = [one["id"] for one in doubtable(self.plain, "ai_suggestion", window)]
            self.say(f"ledger doubt {ids}")
            unstamp = self.world.rows_source(self.plain).unstamp
            put_in_doubt(self.plain, ids, "a person doubts", unstamp_rows=unstamp)

    def _something_happens(self) -> None:
        event = self.chance.choice(["nothing", "stamp", "end", "start"])
        if event == "stamp":
            self.say("a stamp is undone")
            self.world.connection.execute("UPDATE usage_events SET stripe_reported_at = NULL WHERE mod(id, 3) = 0")
        elif event == "end":
            self.world.connection.execute(
                "UPDATE subscriptions SET ended_at = %s WHERE user_id = %s",
                [self.world.time.now(), self.chance.choice(self.names)],
            )
        elif event == "start":
            name = f"c{len(self.names)}"
            self.world.customer(name, started_at=self.world.time.now() - HOUR)
            self.names.append(name)

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
        for name in self.names:
            with suppress(ValueError):
                self.world.stripe.create_customer(f"cus_{name}")
        self.say("the faults have stopped")
        self._report(limited=False)
        horizon = self.world.time.now() - RESEND_LIMIT
        young = [
            event["id"]
            for event in self.world.events()
            if event["state"] == "in_doubt" and event["doubt_since"] > horizon and not self._waits(event)
        ]
        assert not young, f"one run with its retries leaves no young doubt: {young}"

    def _waits(self, event: dict[str, object]) -> bool:
        """Whether an older doubt of the customer and minute has to be decided first."""
        found = self.world.connection.execute(
            "SELECT FROM meterctl.meter_events WHERE customer = %s AND state = 'in_doubt' AND held_reason IS NULL"
            " AND doubt_since <= %s AND date_trunc('minute', sent_timestamp) = date_trunc('minute', %s::timestamptz)",
            [event["customer"], self.world.time.now() - RESEND_LIMIT, event["sent_timestamp"]],
        )
        return found.fetchone() is not None

    def _come_to_rest(self) -> None:
        """Nights without faults, a person who settles what is held by Stripe's truth and retries what was rejected."""
        for _ in range(40):
            if not {"pending", "sending", "in_doubt", "rejected"} & set(self.world.states()) and not self._due():
                return
            self._settle_what_is_held()
            self._retry()
            self.world.time.advance(timedelta(minutes=80))
            self._report(limited=False)
        raise AssertionError("the job does not come to rest")

    def _due(self) -> bool:
        """Whether a row of the look-back still lacks its stamp."""
        found = self.world.connection.execute(
            "SELECT 1 FROM usage_events WHERE stripe_reported_at IS NULL AND created_at > %s AND id::text IN"
            " (SELECT source_row_id FROM meterctl.meter_events WHERE state = 'accepted')",
            [self.world.time.now() - EXPIRED_LOOK_BACK],
        )
        return found.fetchone() is not None

    def _settle_what_is_held(self) -> None:
        known = {event.identifier for event in self.world.stripe.events() if event.counted}
        for event in self.world.events():
            if event["state"] == "in_doubt" and event["held_reason"] is not None:
                present = event["identifier"] in known
                self.say(f"a person says that {event['id']} is {'present' if present else 'absent'}")
                now = self.world.time.now()
                assume(self.plain, [event["id"]], present=present, reason="truth", now=now, grace=HOUR)

    def _retry(self) -> None:
        ids = [event["id"] for event in self.world.events() if event["state"] == "rejected"]
        if ids:
            self.say(f"ledger retry {ids}")
            meter = self.world.settings().meters["ai_suggestion"]
            assert isinstance(meter, RowsMeter)
            owner = LedgerOwner(account="", livemode=False)
            source = PostgresRows(self.plain, "ai_suggestion", meter, self.world.settings().lookups, owner)
            refused = retry(self.plain, ids, source, "ai_suggestion", "mended", self.world.time.now()).refused
            self.say(f"  waived: {refused}")  # such as: older than the 35 days that Stripe takes
            waive(self.plain, list(refused), "nothing else can be done")


def check(world: World) -> None:
    """I1 to I5, to the unit.

    Of equal events of one minute Stripe may have another than the ledger says, and so count one identifier twice and
    another never: that makes no difference to the bill, so totals are compared, not identifiers.
    """
    billed = {customer: total for (_, customer), total in world.stripe.totals().items() if total}
    accepted = {
        row["customer"]: row["total"]
        for row in world.rows(
            "SELECT customer, sum(value) AS total FROM meterctl.meter_events WHERE state = 'accepted' GROUP BY 1"
        )
        if row["total"]
    }
    assert billed == accepted, f"billed {billed}, the ledger says {accepted}"
    for row in world.rows(ACCOUNTED):
        seen_no_more = row["created_at"] < world.time.now() - EXPIRED_LOOK_BACK
        left_alone = row["user_id"] == FREE or row["unpaid"] or seen_no_more
        assert row["state"] in {"accepted", "expired", "waived"} or left_alone, f"row left: {row}"
        assert row["state"] == "accepted" or row["stripe_reported_at"] is None, f"stamped, not billed: {row}"
        assert row["state"] != "accepted" or row["ledger_quantity"] == row["quantity"], f"not its units: {row}"


ACCOUNTED = """
SELECT u.id, u.user_id, u.quantity, u.created_at, u.stripe_reported_at, e.state, e.quantity AS ledger_quantity,
       NOT EXISTS (SELECT FROM subscriptions s WHERE s.user_id = u.user_id
                   AND (s.started_at IS NULL OR s.started_at <= u.created_at)
                   AND (s.ended_at IS NULL OR u.created_at < s.ended_at)) AS unpaid
FROM usage_events u
LEFT JOIN meterctl.meter_events e ON e.source_row_id = u.id::text AND e.state <> 'replaced'
ORDER BY u.id
"""
