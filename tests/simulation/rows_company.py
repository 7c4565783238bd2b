"""An AI product's company: usage rows of users, some of whom pay, two of them through one customer."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from meterctl.actions.collect import EXPIRED_LOOK_BACK
from world import World

HOUR = timedelta(hours=1)
FREE = "free"


@dataclass
class RowsCompany:
    """Its usage, and what must hold of it."""

    world: World
    chance: random.Random
    say: Callable[[str], None]
    names: list[str] = field(default_factory=list)
    meters: tuple[str, ...] = ("ai_suggestion",)

    def found(self) -> dict[str, object]:
        """Customers and their first usage; returns what its Stripe is like."""
        self.names = [f"c{n}" for n in range(self.chance.randint(1, 5))]
        for name in self.names:
            self.world.customer(name, known=self.chance.random() < 0.8)
        if len(self.names) > 1:
            self._pay_through("c0", "c1")
        for _ in range(self.chance.randint(3, 15)):
            self.use(max_ago_min=2000)
        lag_s = self.chance.choice([0, 300, 75 * 60])
        return {"summary_lag_s": lag_s, "identifier_window_h": self.chance.choice([24.0, 48.0])}

    def _pay_through(self, customer: str, user: str) -> None:
        """Two subjects, one who pays."""
        self.world.connection.execute(
            "UPDATE subscriptions SET stripe_customer_id = %s WHERE user_id = %s", [f"cus_{customer}", user]
        )

    def use(self, *, max_ago_min: int) -> None:
        """Usage, often in a minute that has some already."""
        user, quantity = self.chance.choice([*self.names, FREE]), self.chance.choice([0, 1, 1, 2, 3, 9])
        minutes = self.chance.choice([5, 5, 7, self.chance.randint(1, max_ago_min)])
        self.world.usage(user, quantity, ago=timedelta(minutes=minutes, seconds=self.chance.randint(0, 20)))

    def something_happens(self) -> None:
        """A stamp is undone, a subscription ends, another starts; or nothing."""
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

    def is_due(self) -> bool:
        """Whether a row of the look-back still lacks its stamp."""
        found = self.world.connection.execute(
            "SELECT 1 FROM usage_events WHERE stripe_reported_at IS NULL AND created_at > %s AND id::text IN"
            " (SELECT source_row_id FROM meterctl.meter_events WHERE state = 'accepted')",
            [self.world.time.now() - EXPIRED_LOOK_BACK],
        )
        return found.fetchone() is not None

    def check(self) -> None:
        """I1 to I5, to the unit.

        Of equal events of one minute Stripe may have another than the ledger says, and so count one identifier twice
        and another never: that makes no difference to the bill, so totals are compared, not identifiers.
        """
        billed = {customer: total for (_, customer), total in self.world.stripe.totals().items() if total}
        accepted = {
            row["customer"]: row["total"]
            for row in self.world.rows(
                "SELECT customer, sum(value) AS total FROM meterctl.meter_events WHERE state = 'accepted' GROUP BY 1"
            )
            if row["total"]
        }
        assert billed == accepted, f"billed {billed}, the ledger says {accepted}"
        for row in self.world.rows(ACCOUNTED):
            seen_no_more = row["created_at"] < self.world.time.now() - EXPIRED_LOOK_BACK
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
