"""An IoT product's company: levels of sensors, recorded readings, two organisations that one customer pays for."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from meterctl.actions.collect import EXPIRED_LOOK_BACK
from meterctl.sandbox.local_stripe import StoredEvent
from metered_devices import COUNTER, GAUGE, add_sensors, count_readings, organisation, record, switch_off
from simulation.validation import unheard
from world import START, World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FREE = "free"
TURN = START + timedelta(hours=12, minutes=20)
"""Where the billing period of the first organisation turns, in the midst of an hour."""


@dataclass
class DevicesCompany:
    """Its usage, and what must hold of it."""

    world: World
    chance: random.Random
    say: Callable[[str], None]
    names: list[str] = field(default_factory=list)
    meters: tuple[str, ...] = (GAUGE, COUNTER)

    def found(self) -> dict[str, object]:
        """Organisations with sensors; returns what its Stripe is like."""
        self.world.config |= {
            "meters.ai_suggestion.enabled": False,
            f"meters.{GAUGE}.enabled": True,
            f"meters.{COUNTER}.enabled": True,
            f"meters.{COUNTER}.keep_done": "70d",
        }
        self.world.stripe.create_meter(event_name=GAUGE, formula="last")
        self.world.stripe.create_meter(event_name=COUNTER)
        count_readings(self.world)
        organisation(self.world, FREE, sensors=1, pays=False)
        self.names = [f"c{n}" for n in range(self.chance.randint(1, 4))]
        for name in self.names:
            self._open(name)
        if len(self.names) > 1:
            self._pay_through("c0", "c1")
        for _ in range(self.chance.randint(3, 15)):
            self.use(max_ago_min=2000)
        lag_s = self.chance.choice([0, 300, 75 * 60])
        return {"summary_lag_s": lag_s, "identifier_window_h": self.chance.choice([24.0, 48.0])}

    def _open(self, name: str, **columns: Any) -> None:
        period: dict[str, Any] = (
            {"current_period_start": TURN, "current_period_end": TURN + 30 * DAY} if name == "c0" else {}
        )
        known = self.chance.random() < 0.8
        sensors = self.chance.randint(0, 3)
        organisation(self.world, name, sensors=sensors, known=known, **period, **columns)

    def _pay_through(self, customer: str, name: str) -> None:
        """Two subjects, one who pays, for both in the same period."""
        self.world.connection.execute(
            "UPDATE subscriptions SET stripe_customer_id = %s, current_period_start = %s, current_period_end = %s"
            " WHERE organization_id = %s",
            [f"cus_{customer}", TURN, TURN + 30 * DAY, name],
        )

    def use(self, *, max_ago_min: int) -> None:
        """Recorded readings, often of an hour that has been sent already."""
        name, quantity = self.chance.choice([*self.names, FREE]), self.chance.choice([0, 1, 1, 2, 3, 9])
        minutes = self.chance.choice([5, 5, 70, self.chance.randint(1, max_ago_min)])
        record(self.world, name, quantity, at=self.world.time.now() - timedelta(minutes=minutes))

    def something_happens(self) -> None:
        """Sensors come and go, a subscription ends, another starts; or nothing."""
        event, name = (
            self.chance.choice(["nothing", "more", "off", "on", "end", "start"]),
            self.chance.choice(self.names),
        )
        if event == "more":
            add_sensors(self.world, name, self.chance.randint(1, 3))
        elif event == "off":
            switch_off(self.world, name)
        elif event == "on":
            self.world.connection.execute("UPDATE sensors SET is_active = true WHERE organization_id = %s", [name])
        elif event == "end":
            self.world.connection.execute(
                "UPDATE subscriptions SET ended_at = %s WHERE organization_id = %s", [self.world.time.now(), name]
            )
        elif event == "start":
            self._open(f"c{len(self.names)}", started_at=self.world.time.now() - HOUR)
            self.names.append(f"c{len(self.names)}")

    def is_due(self) -> bool:
        """Whether paid usage stands for no event yet: its hour will close."""
        return any(
            row["event_id"] is None and not row["unpaid"] and self._seen(row) for row in self.world.rows(ACCOUNTED)
        )

    def _seen(self, row: dict[str, Any]) -> bool:
        return bool(row["occurred_at"] > self.world.time.now() - EXPIRED_LOOK_BACK)

    def check(self) -> None:
        """I1 to I5, to the unit, of volumes; and of levels, that Stripe's last is ours, by time and by arrival."""
        self._check_totals()
        self._check_windows()
        self._check_levels()

    def _check_totals(self) -> None:
        totals = self.world.stripe.totals()
        billed = {customer: total for (name, customer), total in totals.items() if total and name == COUNTER}
        accepted = {
            row["customer"]: row["total"]
            for row in self.world.rows(
                "SELECT customer, sum(value) AS total FROM meterctl.meter_events"
                " WHERE state = 'accepted' AND event_name = 'temperature_readings' GROUP BY 1"
            )
            if row["total"]
        }
        assert billed == accepted, f"billed {billed}, the ledger says {accepted}"

    def _check_windows(self) -> None:
        for row in self.world.rows(ACCOUNTED):
            left_alone = row["unpaid"] or not self._seen(row)
            assert row["state"] in {"accepted", "expired", "waived", "replaced"} or left_alone, f"row left: {row}"
        for event in self.world.rows(BOUND):
            assert event["quantity"] == event["units"], f"not its units: {event}"

    def _check_levels(self) -> None:
        theirs: dict[Period, list[StoredEvent]] = {}
        for event in self._standing():
            theirs.setdefault(_period(event.customer, event.timestamp), []).append(event)
        ours = {_period(row["customer"], row["sent_timestamp"]): row for row in self._known_levels()}
        closed = {event["identifier"] for event in self.world.events() if event["state"] in {"superseded", "replaced"}}
        for key in list(theirs):  # where no period is known, what counted there may have been given up
            if key not in ours and all(event.identifier in closed for event in theirs[key]):
                del theirs[key]
        assert set(theirs) == set(ours), f"levels of {set(theirs)}, the ledger has {set(ours)}"
        remembers_all = not self._was_set_back()
        for key, events in theirs.items():
            by_time, by_arrival = max(events, key=lambda event: event.timestamp), events[-1]
            arrived = [event.timestamp for event in events]
            assert arrived == sorted(arrived) or not remembers_all, f"levels of {key} arrived in the order {arrived}"
            expected = ours[key]["value"]
            found = (by_time.quantity, by_arrival.quantity)
            assert found == (expected, expected), f"level of {key}: {found} in Stripe, {expected} in the ledger"

    def _standing(self) -> list[StoredEvent]:
        """What Stripe counts, but what the ledger has forgotten, or a person could only close."""
        waived = {event["identifier"] for event in self.world.events() if event["state"] == "waived"}
        lost = self._lost()
        levels = (event for event in self.world.stripe.events() if event.counted and event.event_name == GAUGE)
        return [event for event in levels if event.identifier not in waived and event not in lost]

    def _known_levels(self) -> list[dict[str, Any]]:
        """What the ledger takes for accepted, but what Stripe has dropped without a word, or has from a lost future."""
        standing = {event.identifier for event in self._standing()}
        beyond = {event.identifier for event in (*unheard(self.world), *self._lost())} - standing
        return [row for row in self.world.rows(LEVELS) if row["identifier"] not in beyond]

    def _lost(self) -> list[StoredEvent]:
        """What a future that the ledger has lost had sent: it stands in Stripe until a later level replaces it.

        The ledger may have the same hour's level since, under the same identifier.
        """
        if not self._was_set_back():
            return []
        collected = {event["identifier"]: event["collected_at"] for event in self.world.events()}
        return [
            event
            for event in self.world.stripe.events()
            if event.identifier not in collected or event.received < collected[event.identifier]
        ]

    def _was_set_back(self) -> bool:
        return bool(self.world.rows("SELECT FROM meterctl.identity WHERE recovered_at IS NOT NULL"))


ACCOUNTED = """
SELECT o.*, e.state,
       NOT EXISTS (SELECT FROM subscriptions s WHERE s.organization_id = o.subject
                   AND (s.started_at IS NULL OR s.started_at <= o.occurred_at)
                   AND (s.ended_at IS NULL OR o.occurred_at < s.ended_at)) AS unpaid
FROM meterctl.usage_outbox o LEFT JOIN meterctl.meter_events e ON e.id = o.event_id
ORDER BY o.id
"""

BOUND = """
SELECT e.id, e.quantity, sum(o.quantity) AS units
FROM meterctl.meter_events e JOIN meterctl.usage_outbox o ON o.event_id = e.id
GROUP BY e.id, e.quantity
"""

LEVELS = """
SELECT identifier, customer, sent_timestamp, value FROM meterctl.meter_events
WHERE event_name = 'active_sensors' AND state = 'accepted' ORDER BY sent_timestamp
"""

Period = tuple[str, bool]
"""A customer, and whether its billing period is the one before the turn."""


def _period(customer: str, at: datetime) -> Period:
    return customer, customer == "cus_c0" and at < TURN
