"""An IoT company: organisations with sensors and readings, its two meters, and what its tests look at."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from meterctl.postgres.connect import connect
from meterctl.postgres.counting import plan_counting
from meterctl.settings import CounterMeter
from world import World, open_world

GAUGE, COUNTER = "active_sensors", "temperature_readings"


@contextmanager
def open_devices(database_url: str) -> Iterator[World]:
    """Open a world whose only meters are the gauge and the counter."""
    with open_world(database_url) as world:
        world.config = {
            "meters.ai_suggestion.enabled": False,
            f"meters.{GAUGE}.enabled": True,
            f"meters.{COUNTER}.enabled": True,
        }
        world.stripe.create_meter(event_name=GAUGE, formula="last")
        world.stripe.create_meter(event_name=COUNTER)
        count_readings(world)
        yield world


def count_readings(world: World) -> None:
    """Have what is inserted into `readings` counted, as `db adopt` does."""
    settings = world.settings()
    meter = settings.meters[COUNTER]
    assert isinstance(meter, CounterMeter)
    with connect(world.database_url) as connection:
        for step in plan_counting(connection, settings, {COUNTER: meter}).steps:
            for statement in step.statements:
                connection.execute(statement)


def organisation(
    world: World, name: str, *, sensors: int = 0, pays: bool = True, known: bool = True, **columns: Any
) -> str:
    """An organisation with active sensors and, if it pays, a subscription; returns its customer."""
    world.insert("organizations", {"id": name, "name": name})
    if pays:
        world.insert("subscriptions", {"organization_id": name, "stripe_customer_id": f"cus_{name}"} | columns)
        if known:
            world.stripe.create_customer(f"cus_{name}")
    add_sensors(world, name, sensors)
    return f"cus_{name}"


def add_sensors(world: World, name: str, count: int) -> None:
    """More active sensors."""
    have = world.rows("SELECT count(*) AS n FROM sensors")[0]["n"]
    for n in range(count):
        world.insert("sensors", {"id": f"s{have + n}", "organization_id": name})


def switch_off(world: World, name: str) -> None:
    """All sensors of an organisation."""
    world.connection.execute("UPDATE sensors SET is_active = false WHERE organization_id = %s", [name])


def record(world: World, subject: str, quantity: Any = 1, *, at: datetime | None = None) -> None:
    """Recorded usage of an instant of the world's clock, which `record_usage` itself takes from PostgreSQL's."""
    values = {"meter": COUNTER, "subject": subject, "quantity": quantity, "occurred_at": at or world.time.now()}
    world.insert("meterctl.usage_outbox", values)


def sent(world: World, event_name: str) -> list[tuple[str, Decimal, datetime]]:
    """What Stripe has counted: (customer, value, timestamp), in the order of their timestamps."""
    events = [one for one in world.stripe.events() if one.counted and one.event_name == event_name]
    return sorted((one.customer, one.quantity, one.timestamp) for one in events)


def level(world: World, customer: str) -> Decimal | None:
    """What Stripe would bill a customer of the gauge."""
    return world.stripe.totals().get((GAUGE, customer))


HOUR = timedelta(hours=1)
