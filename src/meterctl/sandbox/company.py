"""A PostgreSQL and a Stripe with a small company in them: what `sandbox up` and `demo` start, and take down again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import LiteralString

import psycopg

from meterctl.postgres.connect import connect
from meterctl.postgres.counting import plan_counting
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.local_stripe.model import Formula
from meterctl.sandbox.postgres import EmbeddedPostgres
from meterctl.settings import CounterMeter, load_settings, shipped_text

CUSTOMERS = ("cus_ada", "cus_bob", "cus_acme", "cus_globex", "cus_carol")
"""Customers of the sample data that Stripe knows; `cus_ghost` is the one it does not."""

METERS: Mapping[str, Formula] = {"ai_suggestion": "sum", "active_sensors": "last", "temperature_readings": "sum"}
"""The shipped meters, all of which are enabled here."""

DATABASE = "app"


@dataclass(frozen=True, kw_only=True, slots=True)
class Company:
    """Both servers, running. `environment` is what a user exports to work with them."""

    stripe: LocalStripe
    database_url: str
    config_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point meterctl here and nowhere else."""
        return {
            "DATABASE_URL": self.database_url,
            "STRIPE_SECRET_KEY": self.stripe.api_key,
            "METERCTL_STRIPE_API_BASE": self.stripe.url,
            "METERCTL_CONFIG": str(self.config_file),
        }

    def comparison(self) -> list[tuple[str, str, Decimal, Decimal, Decimal]]:
        """Return (meter, customer, units in the company's own tables, in the ledger, Stripe's total)."""
        with psycopg.connect(self.database_url) as connection:
            rows = connection.execute(_sql("comparison.sql")).fetchall()
        ours = {(meter, customer): (units, accepted) for meter, customer, units, accepted in rows}
        totals, none = self.stripe.totals(), (Decimal(0), Decimal(0))
        return [(*key, *ours.get(key, none), totals.get(key, Decimal(0))) for key in sorted({*ours, *totals})]


@contextmanager
def running_company(*, tcp: bool) -> Iterator[Company]:
    """Start both servers with schema, shipped tables and sample data; leave no process and no directory behind.

    `tcp` also opens PostgreSQL on a free loopback port, for programs that cannot use its socket.
    """
    with EmbeddedPostgres(tcp=tcp) as server, LocalStripe() as stripe:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        url = server.conninfo(DATABASE)
        migrate(url)
        with psycopg.connect(url) as connection:
            connection.execute(_sql("shipped_tables.sql"))
            connection.execute(_sql("sample_data.sql"))
        for event_name, formula in METERS.items():
            meter = stripe.create_meter(event_name=event_name, formula=formula)
            stripe.create_price(meter.id, unit_amount="2.5")
        for customer in CUSTOMERS:
            stripe.create_customer(customer)
        config_file = server.directory / "meterctl.toml"
        config_file.write_text(shipped_text().replace("enabled = false", "enabled = true"), encoding="utf-8")
        _count_readings(url, config_file)
        yield Company(stripe=stripe, database_url=url, config_file=config_file)


def _count_readings(url: str, config_file: Path) -> None:
    """As `db adopt readings` does."""
    settings = load_settings(config_file=config_file, environ={"DATABASE_URL": url}, flags={})
    counters = {key: meter for key, meter in settings.enabled_meters.items() if isinstance(meter, CounterMeter)}
    with connect(url) as connection:
        for step in plan_counting(connection, settings, counters).steps:
            for statement in step.statements:
                connection.execute(statement)


def _sql(name: str) -> LiteralString:
    return files(__package__).joinpath("sql", name).read_text(encoding="utf-8")
