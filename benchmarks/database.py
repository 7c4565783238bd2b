"""The database's side alone: microseconds a row to collect, claim, record and stamp, with no Stripe involved.

The adapters are called as a run calls them; their own Python and the round trips over the socket are in the figures.
The prototype's figures are those of bare statements with fewer columns, checks and indexes.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import LiteralString, TypeVar

import psycopg
from _scene import Scene, flags, open_scene, print_method, print_table

from meterctl.actions.collect import row_window
from meterctl.core.model import PAST_LIMIT, RESEND_LIMIT, Claim, Heard, Outcome, OutcomeKind
from meterctl.core.state import Transition, advance
from meterctl.ports import ClaimRequest, PageKey
from meterctl.postgres.connect import connect, transaction
from meterctl.postgres.ledger import PostgresMeterLedger
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.runs import start_run
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import RowsMeter, load_settings

T = TypeVar("T")
BARE_STAMP: LiteralString = "UPDATE usage_events SET stripe_reported_at = now() WHERE id = ANY (%s)"


@dataclass(slots=True)
class Stopwatch:
    """Seconds and rows by step."""

    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def timed(self, step: str, rows: int, work: Callable[[], T]) -> T:
        """Do the work and note how long it took; add the rows now or later."""
        started_s = time.perf_counter()
        result = work()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started_s
        self.rows[step] = self.rows.get(step, 0) + rows
        return result

    def us(self, step: str) -> str:
        """Return microseconds a row."""
        return f"{self.seconds[step] / max(1, self.rows[step]) * 1e6:.1f}"


@dataclass(kw_only=True, slots=True)
class Bench:
    """One connection with the adapters of a run on it."""

    connection: psycopg.Connection
    source: PostgresRows
    ledger: PostgresMeterLedger
    watch: Stopwatch = field(default_factory=Stopwatch)

    def collect(self, batch_size: int) -> int:
        """Collect everything; return how many pages it took."""
        now = datetime.now(UTC)
        window = row_window(now, recent=None)
        key: PageKey | None = None
        pages = 0
        while True:
            work = partial(self.source.collect, window, key, batch_size=batch_size, now=now)
            page = self.watch.timed("collect", 0, work)
            pages += 1
            self.watch.rows["collect"] += sum(kind.event_count for kind in page.kinds)
            key = page.next_key
            if key is None:
                return pages

    def deliver(self, tick: int, ticks: int, step: str) -> None:
        """Claim and record `tick` events at a time, as accepted, apart from each other."""
        idle: tuple[str, ...] = ()
        after, ended = "", False
        for _ in range(ticks):
            now = datetime.now(UTC)
            scan = 0 if ended else tick - len(idle)
            request = claim_request(now, idle, scan, after, tick)
            claimed = self.watch.timed(f"claim {step}", 0, partial(self.ledger.exchange, [], request, now=now))
            self.watch.rows[f"claim {step}"] += len(claimed.claims)
            after, ended = claimed.after_customer, ended or (scan > 0 and claimed.scan_ended)
            answers = [(heard, transition(heard, now)) for heard in map(accepted, claimed.claims)]
            work = partial(self.ledger.exchange, answers, None, now=now)
            self.watch.timed(f"record {step}", len(answers), work)
            idle = tuple(claim.event.customer for claim in claimed.claims)

    def stamp(self, batch_size: int, rows: int) -> None:
        """Stamp rows by themselves, our way and by the barest statement."""
        ids = [
            row[0]
            for row in self.connection.execute(
                "SELECT id FROM usage_events WHERE stripe_reported_at IS NULL ORDER BY id LIMIT %s", [2 * rows]
            )
        ]
        for first in range(0, len(ids) - 2 * batch_size + 1, 2 * batch_size):
            ours, bare = ids[first : first + batch_size], ids[first + batch_size : first + 2 * batch_size]
            self.watch.timed("stamp", len(ours), partial(self._stamp, ours))
            self.watch.timed("stamp, bare", len(bare), partial(self.connection.execute, BARE_STAMP, [bare]))

    def _stamp(self, ids: Sequence[int]) -> None:
        with transaction(self.connection):
            self.source.stamp([str(n) for n in ids], now=datetime.now(UTC))


def main() -> int:
    """Measure and print."""
    sizes = {"rows": 100_000, "events": 24_000, "customers": 2000, "batch": 500, "tick": 24, "large_tick": 256}
    chosen = flags(__doc__ or "", **sizes).parse_args()
    with open_scene(customers=chosen.customers) as scene:
        print_method(
            f"{chosen.rows:,} unreported rows of {chosen.customers} customers, collected {chosen.batch} at a time;"
            f" then {chosen.events:,} events claimed and recorded\n(stamping included) in transactions of {chosen.tick}"
            f" (a tick at 1,000/s) and as many in transactions of {chosen.large_tick}.\n"
            f"PostgreSQL {scene.server.server_version} on this machine, fsync off, no concurrent load."
        )
        scene.usage(chosen.rows)
        with opened(scene) as bench_connection:
            bench = bench_on(bench_connection, scene)
            bench.collect(chosen.batch)
            bench_connection.execute("VACUUM ANALYZE")
            for tick, step in ((chosen.tick, "small"), (chosen.large_tick, "large")):
                bench.deliver(tick, chosen.events // tick, step)
            bench.stamp(chosen.batch, chosen.events // 2)
    print_figures(bench.watch, chosen.batch, chosen.tick, chosen.large_tick)
    return 0


def opened(scene: Scene) -> psycopg.Connection:
    """Open a connection as the command does."""
    return connect(scene.database_url)


def bench_on(connection: psycopg.Connection, scene: Scene) -> Bench:
    """Return a bench on the connection."""
    settings = load_settings(config_file=None, environ=scene.environment, flags={})
    owner = LedgerOwner(account="acct_sandboxexample", livemode=False)
    meter = settings.meters["ai_suggestion"]
    if not isinstance(meter, RowsMeter):
        raise SystemExit("the shipped meter is of rows")
    source = PostgresRows(connection, "ai_suggestion", meter, settings.lookups, owner)
    ledger = PostgresMeterLedger(
        connection,
        meter="ai_suggestion",
        event_name=meter.event_name,
        run_id=start_run(connection, "bench", owner, datetime.now(UTC)),
        stamp_rows=lambda row_ids, now: source.stamp(row_ids, now=now),
    )
    return Bench(connection=connection, source=source, ledger=ledger)


def claim_request(now: datetime, customers: tuple[str, ...], scan_max: int, after: str, limit: int) -> ClaimRequest:
    """Ask as a run does."""
    return ClaimRequest(
        fresh_max=limit,
        customers=customers,
        scan_max=scan_max,
        after_customer=after,
        retry_ids=(),
        now=now,
        doubt_since=now,
        doubt_horizon=now - RESEND_LIMIT,
        expired_before=now - PAST_LIMIT,
    )


def accepted(claim: Claim) -> Heard:
    """Return the claim as if Stripe had accepted it."""
    return Heard(
        claim=claim,
        outcome=Outcome(kind=OutcomeKind.ACCEPTED, heard=True, status=200, request_id="req_example", livemode=False),
    )


def transition(heard: Heard, now: datetime) -> Transition:
    """Return what the answer leads to."""
    return advance(heard.claim, heard.outcome, now=now, grace=timedelta(hours=1))


def print_figures(watch: Stopwatch, batch: int, tick: int, large_tick: int) -> None:
    """Print microseconds a row beside the prototype's."""
    rows = [
        (f"collect: classify, insert into the ledger; by {batch}", watch.us("collect"), "4-5 (delete + insert)"),
        (f"claim; by {tick}", watch.us("claim small"), ""),
        (f"claim; by {large_tick}", watch.us("claim large"), ""),
        (f"record and stamp; by {tick}", watch.us("record small"), ""),
        (f"record and stamp; by {large_tick}", watch.us("record large"), ""),
        (f"stamp alone; by {batch}", watch.us("stamp"), "4-9"),
        (f"stamp, the barest statement; by {batch}", watch.us("stamp, bare"), "4-9"),
    ]
    print_table(("step", "us/row", "prototype"), rows)


if __name__ == "__main__":
    sys.exit(main())
