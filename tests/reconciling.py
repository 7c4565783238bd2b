"""Comparing a world's ledger with its Stripe, and what sets the scene for it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg

from meterctl.actions.reading_plan import default_span, reading_plan
from meterctl.actions.reconcile import MeterSide, Reconciliation
from meterctl.core.reconciliation import Difference
from meterctl.core.spans import Span
from meterctl.errors import UnavailableError
from meterctl.ports import GroupedReading
from meterctl.postgres.reconciliations import PostgresReconciliations
from meterctl.postgres.summary import MeterFigures, meter_figures
from meterctl.render.reconcile import ReconcileDocument
from meterctl.sandbox.local_stripe import Fault, FaultKind
from meterctl.settings import RowsMeter
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.summaries import MeterSummaries
from world import World

MINUTE = timedelta(minutes=1)

HOUR = timedelta(hours=1)

DAY = timedelta(days=1)

COUNTING_METER: dict[str, object] = {
    "source": "rows",
    "formula": "count",
    "table": "runs",
    "occurred_at": "started_at",
    "payers": [{"lookup": "individual", "column": "user_id"}],
}

LOST_READ = Fault(kind=FaultKind.ERROR_500, operation="event_summaries.list", times=None)


def reconcile(
    world: World,
    *,
    span: Span | None = None,
    only: tuple[str, ...] = (),
    reads_max: int = 300,
    after_read: Callable[[], None] = lambda: None,
    unreadable: tuple[str, ...] = (),
) -> ReconcileDocument:
    """Compare once, as the command does. `after_read` is done behind each read of Stripe's totals."""
    settings = world.settings()
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        sides = []
        for meter in settings.enabled_meters.values():
            assert isinstance(meter, RowsMeter)
            name = meter.event_name
            client = stripe_client(settings.stripe, connections_max=1)
            totals = Watched(MeterSummaries(client, name, livemode=False, pace_per_s=None), after_read, unreadable)
            ledger = PostgresReconciliations(connection, event_name=name, formula=meter.formula, run_id=1)
            sides.append(MeterSide(event_name=name, ledger=ledger, totals=totals))
        span = span or default_span(world.time.now())
        known = [one for side in sides for one in side.ledger.customers(span, only)]
        plan = reading_plan(known, span, reads_max=reads_max)
        by_name = {side.event_name: side for side in sides}
        Reconciliation(sides=by_name, plan=plan, clock=world.time, may_go_on=lambda: True).run()
    return ReconcileDocument(plan=plan, sides=sides)


class Watched:
    def __init__(self, totals: MeterSummaries, after_read: Callable[[], None], unreadable: tuple[str, ...]) -> None:
        self._totals = totals
        self._after_read = after_read
        self._unreadable = unreadable

    def grouped(self, customer: str, start: datetime, end: datetime, unit: timedelta | None) -> GroupedReading:
        if customer in self._unreadable:
            raise UnavailableError("no answer")
        reading = self._totals.grouped(customer, start, end, unit)
        self._after_read()
        return reading


def foreign(world: World, value: Any, at: datetime, *, customer: str = "cus_ada") -> None:
    """Somebody else reports."""
    stripe_client(world.settings().stripe, connections_max=1).v1.billing.meter_events.create(
        {
            "event_name": "ai_suggestion",
            "payload": {"stripe_customer_id": customer, "value": str(value)},
            "timestamp": int(at.timestamp()),
        }
    )


def lose(world: World, user: str, *quantities: Any, ago: timedelta = HOUR) -> None:
    """Usage that Stripe answered with 200 and dropped afterwards: it did not know the customer then. It does now."""
    for quantity in quantities:
        world.usage(user, quantity, ago=ago)
    world.stripe.set_options(unknown_customer="later")
    world.run()
    world.stripe.create_customer(f"cus_{user}")
    assert set(world.states()) == {"accepted"}


def later(world: World, wait: timedelta = 3 * HOUR) -> None:
    """Stripe's totals have caught up with all that was sent."""
    world.time.advance(wait)


def figures(world: World) -> MeterFigures:
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        (found,) = meter_figures(connection, world.time.now(), {})
    return found


def kept(world: World) -> list[dict[str, Any]]:
    return world.rows("SELECT * FROM meterctl.reconciliations ORDER BY id")


def reads(world: World) -> int:
    return len(world.stripe.requests("event_summaries.list"))


def only_one(document: ReconcileDocument) -> Difference:
    (difference,) = document.differences
    return difference


def minute_of(row: dict[str, Any]) -> Span:
    start = row["sent_timestamp"].replace(second=0)
    return Span(start=start, end=start + MINUTE)


def at(world: World, ago: timedelta) -> datetime:
    return world.time.now() - ago
