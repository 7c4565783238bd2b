"""Stripe's own validation in one seed: what it drops after its 200, and how it tells of that."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from meterctl.actions.stripe_events import LISTED_FOR
from meterctl.sandbox.local_stripe import RandomRejections, StoredEvent
from world import World

LAGS = (
    timedelta(0),
    timedelta(seconds=2),
    timedelta(seconds=2),
    timedelta(hours=1),
    timedelta(hours=30),
    timedelta(days=4),
)
"""How long after an event's 200 its report comes."""

LIST_LAGS = (timedelta(0), timedelta(0), timedelta(0), timedelta(minutes=5), timedelta(hours=20))
"""How much later than that it shows in Stripe's list; a pull reads a day's worth again."""

SOON = timedelta(seconds=15)
"""Long enough for a report without lag: its window of 10 s is over."""


@dataclass(kw_only=True)
class Validation:
    """What a seed's Stripe finds invalid. `rounds_left`: so long it goes on when all other faults have stopped."""

    world: World
    seed: int
    chance: random.Random
    say: Callable[[str], None]
    rounds_left: int = -1

    def begin(self) -> None:
        """Put in force what the seed draws, nothing at all among it."""
        rate, false_rate = self.chance.choice([(0.0, 0.0), (0.1, 0.1), (0.3, 0.1), (0.3, 0.5), (0.7, 0.1)])
        options: dict[str, object] = {
            "unknown_customer": self.chance.choice(["now", "later"]),
            "validation_lag_s": self.chance.choice(LAGS).total_seconds(),
            "report_samples_max": self.chance.choice([10, 10, 10, 1, 0]),
            "report_names": self.chance.choice(["identifier", "idempotency_key"]),
            "duplicate_reports": self.chance.random() < 0.3,
            "event_list_lag_s": self.chance.choice(LIST_LAGS).total_seconds(),
            "event_list_seed": self.chance.choice([None, self.seed]),
        }
        self.world.stripe.set_options(**options)
        self.world.stripe.set_random_rejections(RandomRejections(seed=self.seed, rate=rate, false_rate=false_rate))
        self.rounds_left = self.chance.randint(0, 6)
        self.say(f"Stripe drops {rate} and reports {false_rate} that it counts: {options}")

    def tell(self) -> None:
        """Report something of its own accord: what was counted, what somebody else sent, or what nothing names."""
        sent = [event.identifier for event in self.world.stripe.events()]
        if sent and self.chance.random() < 0.3:
            self._tell_of(self.chance.choice([self.chance.choice(sent), "of-another"]), self.chance.choice([1, 3]))

    def tell_of_the_last(self) -> None:
        """Report what it got last, whether it was dropped or not."""
        if sent := self.world.stripe.events():
            self._tell_of(sent[-1].identifier, 1)

    def _tell_of(self, identifier: str, count: int) -> None:
        named = self.chance.choice([identifier, f"{identifier}:0"])
        self.say(f"Stripe reports {count} errors, one of them about {named}")
        self.world.stripe.report_error(named, error_count=count)

    def go_on(self) -> None:
        """One round nearer to its end: then nothing is dropped any more, and in some days all is told."""
        self.rounds_left -= 1
        if self.rounds_left == -1:
            self.world.stripe.set_random_rejections(None)
            self.world.stripe.set_options(unknown_customer="now")
            self.world.time.advance(LAGS[-1] + LIST_LAGS[-1] + SOON)
            self.say("Stripe drops nothing any more, and has told all")

    @property
    def has_ended(self) -> bool:
        """Whether all that it dropped can be read."""
        return self.rounds_left < 0

    def check(self) -> None:
        """Raise AssertionError unless every report that Stripe still lists was read, and came to something."""
        listed_since = self.world.time.now() - LISTED_FOR
        told = {event.id for event in self.world.stripe.thin_events() if event.created > listed_since}
        noted = {row["event_id"] for row in self.world.rows("SELECT event_id FROM meterctl.error_reports")}
        assert told <= noted, f"reports that nobody acted on: {told - noted}"
        undecided = self.world.rows("SELECT * FROM meterctl.error_samples WHERE verdict IS NULL")
        assert not undecided, f"reports that nobody decided: {undecided}"
        billed = self.world.rows(REJECTED_AND_BILLED)
        assert not billed, f"found rejected, and billed under the same identifier: {billed}"


def unheard(world: World) -> list[StoredEvent]:
    """Return what Stripe has dropped and no report that was read names: only totals can tell."""
    heard = world.rows(HEARD)
    return [
        event
        for event in world.stripe.events()
        if not event.counted
        and not any(
            one["named"] in {event.identifier, event.idempotency_key}
            and one["validation_start"] <= event.received < one["validation_end"]
            for one in heard
        )
    ]


HEARD = """
SELECT sample.named, report.validation_start, report.validation_end
FROM meterctl.error_samples AS sample JOIN meterctl.error_reports AS report USING (event_id)
WHERE sample.meter_event_id IS NOT NULL
"""

REJECTED_AND_BILLED = """
SELECT event.id, event.identifier, event.state
FROM meterctl.error_samples AS sample JOIN meterctl.meter_events AS event ON event.id = sample.meter_event_id
WHERE sample.verdict = 'rejected' AND event.state NOT IN ('replaced', 'waived')
"""
