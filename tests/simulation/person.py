"""The person of the nights: doubts by hand, decides what is held, retries rejections, compares with Stripe."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any

import psycopg

from meterctl.actions.reading_plan import default_span, reading_plan
from meterctl.actions.reconcile import MeterSide, Reconciliation
from meterctl.core.reconciliation import Cause, Difference
from meterctl.core.settlement import Window
from meterctl.core.spans import DAY, Span
from meterctl.postgres.ledger_admin import retry, waive
from meterctl.postgres.reconciliations import PostgresReconciliations
from meterctl.postgres.settlements import assume, doubtable, put_in_doubt
from meterctl.postgres.sources import Sources
from meterctl.sandbox.local_stripe import StoredEvent
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.summaries import MeterSummaries
from simulation.company import Company
from simulation.validation import unheard
from world import START, World

HOUR = timedelta(hours=1)
FIRST_USAGE = START - 3 * DAY

Event = dict[str, Any]
Minute = tuple[str, str, datetime]
"""Event_name, customer, and when it starts."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Acts on the ledger of a company, as `ledger`, `settle` and `reconcile` do. `say` is told each step."""

    world: World
    plain: psycopg.Connection
    chance: random.Random
    say: Callable[[str], None]
    company: Company

    def doubt_something(self) -> None:
        """Doubt a minute that Stripe has accepted."""
        found = [event for event in self.world.events() if event["state"] == "accepted"]
        if found:
            self._doubt(_minute_of(self.chance.choice(found)), "a person doubts")

    def _doubt(self, minute: Minute, reason: str) -> list[int]:
        event_name, customer, start = minute
        ids = [one["id"] for one in doubtable(self.plain, event_name, Window(customer=customer, minute=start))]
        self.say(f"ledger doubt {ids}: {reason}")
        return put_in_doubt(self.plain, ids, reason, unstamp_rows=self.world.rows_source(self.plain).unstamp)

    def retry(self) -> None:
        """Issue again what was rejected, its cause mended."""
        sources = Sources(connection=self.plain, settings=self.world.settings())
        for meter in self.company.meters:
            rejected = (one for one in self.world.events() if (one["state"], one["meter"]) == ("rejected", meter))
            if ids := [event["id"] for event in rejected]:
                self.say(f"ledger retry {ids}")
                refused = retry(self.plain, ids, sources.of(meter), meter, "mended", self.world.time.now()).refused
                self.say(f"  waived: {refused}")  # such as: older than the 35 days that Stripe takes
                waive(self.plain, list(refused), "nothing else can be done")

    # What is held

    def settle_what_is_held(self) -> None:
        """Decide by Stripe's truth: of a level, whether it counted; of a sum, what makes it up."""
        minutes: defaultdict[Minute, list[Event]] = defaultdict(list)
        for event in self.world.events():
            if event["state"] == "in_doubt":
                minutes[_minute_of(event)].append(event)
        for minute, events in minutes.items():
            if all(event["held_reason"] is not None for event in events):
                self._settle_minute(minute, events)

    def _settle_minute(self, minute: Minute, events: Sequence[Event]) -> None:
        present = self._present(minute, events)
        if present is None:
            assert self._doubt(minute, "some of what is accepted is missing"), f"Stripe has what nobody sent: {minute}"
            return
        for event in events:
            is_present = event["id"] in present
            self.say(f"a person says that {event['id']} is {'present' if is_present else 'absent'}")
            now = self.world.time.now()
            assume(self.plain, [event["id"]], present=is_present, reason="truth", now=now, grace=HOUR)

    def _present(self, minute: Minute, events: Sequence[Event]) -> set[int] | None:
        """Return the ids of those that Stripe has; None if no selection makes up what it has beyond the accepted.

        Of equal ones Stripe may have another than the ledger says: where those that it knows by identifier do not make
        up its total, any others that do are as good.
        """
        identifiers = {event.identifier for event in self.world.stripe.events() if event.counted}
        known = [event for event in events if event["identifier"] in identifiers]
        if minute[0] == "active_sensors":
            return {event["id"] for event in known}
        missing = self._missing(minute)
        for some in (known, *_subsets(events)):
            if sum((event["value"] for event in some), Decimal(0)) == missing:
                return {event["id"] for event in some}
        return None

    def _missing(self, minute: Minute) -> Decimal:
        stripe = sum(
            (one.quantity for one in self.world.stripe.events() if one.counted and _minute_at(one) == minute),
            Decimal(0),
        )
        accepted = (one for one in self.world.events() if one["state"] == "accepted" and _minute_of(one) == minute)
        return stripe - sum((one["value"] for one in accepted), Decimal(0))

    # What nobody has named

    def doubt_what_falls_short(self) -> bool:
        """Compare all totals with Stripe's, and doubt the minutes that fall short; return whether there were any."""
        differences = self._reconcile()
        nameless = {_minute_at(event) for event in unheard(self.world)}
        for difference in differences:
            assert difference.cause is Cause.SHORTFALL, f"no shortfall: {difference}"
            minute = (difference.event_name, difference.customer, difference.span.start)
            assert minute in nameless, f"a report named it: {difference}"
            self._doubt(minute, f"Stripe has {difference.stripe_total} of {difference.ledger_total}")
        return bool(differences)

    def _reconcile(self) -> list[Difference]:
        settings = self.world.settings()
        client = stripe_client(settings.stripe, connections_max=1)
        summed = [meter for key in self.company.meters if (meter := settings.meters[key]).formula != "last"]
        sides = {
            meter.event_name: MeterSide(
                event_name=meter.event_name,
                ledger=PostgresReconciliations(
                    self.plain, event_name=meter.event_name, formula=meter.formula, run_id=1
                ),
                totals=MeterSummaries(client, meter.event_name, livemode=False, pace_per_s=None),
            )
            for meter in summed
        }
        span = Span(start=FIRST_USAGE, end=default_span(self.world.time.now()).end)
        known = [one for side in sides.values() for one in side.ledger.customers(span, ())]
        plan = reading_plan(known, span, reads_max=100_000)
        Reconciliation(sides=sides, plan=plan, clock=self.world.time, may_go_on=lambda: True).run()
        return [difference for side in sides.values() for difference in side.differences]


def _subsets(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    for size in range(len(events) + 1):
        yield from combinations(events, size)


def _minute_of(event: Event) -> Minute:
    return event["event_name"], event["customer"], event["sent_timestamp"].replace(second=0, microsecond=0)


def _minute_at(event: StoredEvent) -> Minute:
    return event.event_name, event.customer, event.timestamp.replace(second=0, microsecond=0)
