"""What the benchmarks share: a real PostgreSQL, the local Stripe in its own process, and the installed command."""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, LiteralString

import psycopg
from psycopg import sql

from meterctl.postgres.migrate import migrate
from meterctl.sandbox.local_stripe.process import StripeProcess
from meterctl.sandbox.postgres import EmbeddedPostgres

METERCTL = Path(sys.executable).with_name("meterctl")
SHIPPED_TABLES = Path(__file__).parent.parent / "src" / "meterctl" / "sandbox" / "sql" / "shipped_tables.sql"
QUIET_LOAD = 0.3

# Rows lie within the last ten days, in the order of their ids, as an application leaves them.
INSERT_ROWS: LiteralString = """
    INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)
    SELECT 'ws', 'user-' || (1 + n %% %(customers)s), 1 + n %% 5,
           now() - interval '10 days' + n * (interval '9 days' / %(rows)s)
    FROM generate_series(1, %(rows)s) AS n
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a command left, and what it took. `cpu_s` is its own, user and system."""

    code: int
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float

    @property
    def totals(self) -> dict[str, Any]:
        """The totals of the JSON document on stdout."""
        totals: dict[str, Any] = json.loads(self.stdout)["totals"]
        return totals


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A migrated database with the shipped tables, `customer_count` subscribed users, and their Stripe."""

    server: EmbeddedPostgres
    database_url: str
    stripe: StripeProcess
    customer_count: int

    @property
    def environment(self) -> dict[str, str]:
        """What the command is started with, and nothing else."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": tempfile.gettempdir(),
            "DATABASE_URL": self.database_url,
            "STRIPE_SECRET_KEY": self.stripe.api_key,
            "METERCTL_STRIPE_API_BASE": self.stripe.url,
        }

    def connect(self) -> psycopg.Connection:
        """Open a connection that commits each statement."""
        return psycopg.connect(self.database_url, autocommit=True)

    def execute(self, *statements: LiteralString) -> None:
        """Execute statements one by one."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def usage(self, rows: int) -> None:
        """Add unreported rows, spread evenly over the customers."""
        with self.connect() as connection:
            connection.execute(INSERT_ROWS, {"rows": rows, "customers": self.customer_count})
            connection.execute("VACUUM ANALYZE usage_events")

    def start(self, *arguments: str, stdout: IO[str], stderr: IO[str]) -> "subprocess.Popen[str]":
        """Start `meterctl`."""
        return subprocess.Popen(
            [METERCTL, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    def run(self, *arguments: str) -> Finished:
        """Run `meterctl` to its end."""
        with captured() as (stdout, stderr):
            cpu_s, started_s = _children_cpu_s(), time.perf_counter()
            code = self.start(*arguments, stdout=stdout, stderr=stderr).wait()
            wall_s = time.perf_counter() - started_s
            return Finished(
                code=code,
                stdout=contents(stdout),
                stderr=contents(stderr),
                wall_s=wall_s,
                cpu_s=_children_cpu_s() - cpu_s,
            )

    def report(self, *arguments: str) -> Finished:
        """Run `meterctl report-usage`; leave where it does not succeed."""
        finished = self.run("report-usage", "--json", *arguments)
        if finished.code != 0:
            raise SystemExit(f"report-usage ended with {finished.code}:\n{finished.stderr}{finished.stdout}")
        return finished


@contextmanager
def open_scene(*, latency_ms: float = 0, customers: int = 2000, database: str = "bench") -> Iterator[Scene]:
    """Start both servers; stop them and remove everything at the end."""
    with EmbeddedPostgres() as server, StripeProcess("--latency-ms", str(latency_ms)) as stripe:
        _create_meter(stripe)
        stripe.control("POST", "customers", [{"id": f"cus_{n}"} for n in range(1, customers + 1)])
        yield new_database(server, stripe, database, customers)


def new_database(server: EmbeddedPostgres, stripe: StripeProcess, name: str, customers: int) -> Scene:
    """Make one more database on the same server, migrated, with the shipped tables and the customers' subscriptions."""
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = server.conninfo(name)
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SHIPPED_TABLES.read_bytes())
        connection.execute(
            "INSERT INTO subscriptions (user_id, stripe_customer_id)"
            " SELECT 'user-' || n, 'cus_' || n FROM generate_series(1, %s) AS n",
            [customers],
        )
        connection.execute("VACUUM ANALYZE subscriptions")
    return Scene(server=server, database_url=url, stripe=stripe, customer_count=customers)


def _create_meter(process: StripeProcess) -> None:
    import stripe  # noqa: PLC0415 -- 0.1 s that only this needs

    stripe.enable_telemetry = False
    sdk = stripe.StripeClient(process.api_key, base_addresses={"api": process.url})
    sdk.v1.billing.meters.create(
        {"display_name": "Bench", "event_name": "ai_suggestion", "default_aggregation": {"formula": "sum"}}
    )


@contextmanager
def captured() -> Iterator[tuple[IO[str], IO[str]]]:
    """Files for the streams of a child: unlike pipes they cannot fill up."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(tempfile.TemporaryFile("w+")),
            stack.enter_context(tempfile.TemporaryFile("w+")),
        )


def contents(file: IO[str]) -> str:
    """Return what a child wrote."""
    file.seek(0)
    return file.read()


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def flags(description: str, **defaults: float) -> argparse.ArgumentParser:
    """Return a parser of a benchmark's flags: one number for each default, of its type."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"({default})")
    return parser


def print_method(text: str) -> None:
    """Print how the figures below came about, on which machine, and how busy that was."""
    load = os.getloadavg()[0]
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    print(text.strip())
    print(f"Machine: {machine}; load average before: {load:.2f}{'' if load < QUIET_LOAD else ' (NOT QUIET)'}.\n")


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns, the first to the left and the rest to the right."""
    table = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[n]) for row in table) for n in range(len(head))]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))


def print_verdict(claim: str, *, met: bool) -> int:
    """Print whether a target is met; return the exit code."""
    print(f"\n{'met' if met else 'MISSED'}: {claim}")
    return 0 if met else 1
