"""The installed command as a child process, on a database and a local Stripe of the test's own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli.nursery import nursery
from meterctl.sandbox.local_stripe import LocalStripe

TIMEOUT_S = 90

READ_AT_START = ("PYTHON", "STRIPE_LOG", "LC_", "LANG")
"""How variables begin that Python, or the SDK when it is imported, reads once and for all."""

LIVE = """
import sys, stripe
stripe.DEFAULT_API_BASE = sys.argv.pop(1)
from meterctl.__main__ import run
run()
"""
"""The command as it is, but Stripe's own address is the local one: `METERCTL_STRIPE_API_BASE` is for test keys only."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left: exit code and streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)


@dataclass(kw_only=True)
class Shell:
    """Runs `meterctl` with an environment that holds nothing else. `live`: with a live key, on Stripe's live data."""

    database_url: str
    stripe: LocalStripe
    home: Path
    extra: dict[str, str] = field(default_factory=dict)
    live: bool = False

    @property
    def environment(self) -> dict[str, str]:
        given = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DATABASE_URL": self.database_url,
            "STRIPE_SECRET_KEY": self.stripe.api_key,
            "METERCTL_STRIPE_API_BASE": self.stripe.url,
        } | self.extra
        if self.live:
            given |= {"STRIPE_SECRET_KEY": "sk_live_example", "METERCTL_STRIPE_API_BASE": ""}
        return {name: value for name, value in given.items() if value}

    @property
    def program(self) -> list[str]:
        return [sys.executable, *(["-c", LIVE, self.stripe.url] if self.live else ["-m", "meterctl"])]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command, as a process of its own from the beginning."""
        return subprocess.Popen(
            [*self.program, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Finished:
        """Run a command to its end, forked where nothing is to be seen of its start."""
        if any(name.startswith(READ_AT_START) for name in self.environment):
            return self._run_from_the_start(*arguments)
        base = self.stripe.url if self.live else None
        return Finished(*nursery().run(arguments, self.environment, stripe_base=base, timeout_s=TIMEOUT_S))

    def _run_from_the_start(self, *arguments: str) -> Finished:
        child = self.start(*arguments)
        try:
            stdout, stderr = child.communicate(timeout=TIMEOUT_S)
        finally:
            child.kill()
        return Finished(child.returncode, stdout, stderr)

    def sql(self, text: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.database_url) as connection:
            cursor = connection.execute(text, parameters)
            return list(cursor.fetchall()) if cursor.description is not None else []

    def usage(self, count: int = 1, *, customers: int = 1, quantity: object = 1, known: bool = True) -> None:
        """`count` rows of usage by `customers` subscribed users."""
        self.sql(
            "INSERT INTO subscriptions (user_id, stripe_customer_id)"
            " SELECT 'u' || n, 'cus_' || n FROM generate_series(1, %s) AS n",
            customers,
        )
        self.sql(
            "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)"
            " SELECT 'ws', 'u' || 1 + n %% %s, %s::numeric, now() - interval '1 hour' FROM generate_series(1, %s) AS n",
            customers,
            quantity,
            count,
        )
        for n in range(1, customers + 1) if known else []:
            self.stripe.create_customer(f"cus_{n}")

    def assert_exact(self) -> None:
        """Stripe's total per customer is the ledger's accepted total, and every accepted row is stamped."""
        ledger = {
            (name, customer): total
            for name, customer, total in self.sql(
                "SELECT event_name, customer, sum(value) FROM meterctl.meter_events"
                " WHERE state = 'accepted' GROUP BY 1, 2"
            )
        }
        assert self.stripe.totals() == ledger

    @property
    def total(self) -> Decimal:
        return sum(self.stripe.totals().values(), Decimal(0))


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Iterator[Shell]:
    with LocalStripe() as stripe:
        stripe.create_meter(event_name="ai_suggestion")
        yield Shell(database_url=database_url, stripe=stripe, home=tmp_path)
