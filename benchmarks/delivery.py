"""Delivery: events per second at 100 ms latency, the naive design against `meterctl report-usage`.

Naive is what the job replaces: select 500 unreported rows; per row look up the customer, send the event through the
official SDK, update the row, commit. Its rate does not depend on the number of rows, so it gets fewer of them.
`--profile` shows what a call costs in CPU instead, by library.
"""

import cProfile
import pstats
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import stripe
from _scene import Scene, flags, open_scene, print_method, print_table, print_verdict

from meterctl.core.model import MeterEvent, OutcomeKind
from meterctl.settings import load_settings
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents

TARGET = 60.0
"""Times the naive rate."""


def main() -> int:
    """Measure and compare, or profile."""
    parser = flags(__doc__ or "", events=20_000, customers=2000, naive_rows=300, latency_ms=100.0, repeats=3)
    parser.add_argument("--profile", action="store_true", help="show the CPU of a call, by library")
    chosen = parser.parse_args()
    if chosen.profile:
        return profile()
    with open_scene(latency_ms=chosen.latency_ms, customers=chosen.customers) as scene:
        print_method(
            f"{chosen.events} events of {chosen.customers} customers over loopback to a Stripe in its own process that"
            f" takes {chosen.latency_ms:g} ms a call;\nPostgreSQL {scene.server.server_version} on this machine."
            f" Naive: {chosen.naive_rows} rows. meterctl: the command from start to exit, collecting included;"
            f" median of {chosen.repeats}."
        )
        naive_per_s = naive(scene, chosen.naive_rows)
        runs = [ours(scene, chosen.events) for _ in range(chosen.repeats)]
    median = sorted(runs)[len(runs) // 2]
    ratio = median[0] / naive_per_s
    rows = [("naive, one by one", f"{naive_per_s:.1f}", "1", "")]
    rows += [
        (f"meterctl report-usage, run {n}", f"{rate:.0f}", f"{rate / naive_per_s:.0f}", f"{cpu_us:.0f}")
        for n, (rate, cpu_us) in enumerate(runs, 1)
    ]
    print_table(("design", "events/s", "times naive", "CPU us/event"), rows)
    spread = statistics.pstdev(rate for rate, _ in runs) / median[0]
    return print_verdict(
        f"{median[0]:.0f} events/s (spread {spread:.0%}), {ratio:.0f} times the naive rate; at least {TARGET:.0f}",
        met=ratio >= TARGET,
    )


def naive(scene: Scene, rows: int) -> float:
    """Report rows the way of the services meterctl replaces; return rows per second."""
    scene.usage(rows)
    sdk = stripe.StripeClient(scene.stripe.api_key, base_addresses={"api": scene.stripe.url})
    started_s = time.perf_counter()
    with scene.connect() as connection:
        batch = connection.execute(
            "SELECT id, workspace_id, user_id, quantity, created_at FROM usage_events"
            " WHERE stripe_reported_at IS NULL ORDER BY created_at LIMIT 500"
        ).fetchall()
        for row_id, workspace, user, quantity, created_at in batch:
            found = connection.execute(
                "SELECT stripe_customer_id FROM subscriptions WHERE user_id = %s AND status = 'active'", [user]
            ).fetchone()
            assert found is not None  # noqa: S101 -- the scene subscribes everybody
            sdk.v1.billing.meter_events.create(
                {
                    "event_name": "ai_suggestion",
                    "payload": {"stripe_customer_id": found[0], "value": str(quantity)},
                    "identifier": f"{workspace}-{user}-{row_id}",
                    "timestamp": int(created_at.timestamp()),
                }
            )
            connection.execute("UPDATE usage_events SET stripe_reported_at = now() WHERE id = %s", [row_id])
    return len(batch) / (time.perf_counter() - started_s)


def ours(scene: Scene, events: int) -> tuple[float, float]:
    """Report as many new rows; return events per second and CPU microseconds per event. Stripe must have got all."""
    scene.execute("TRUNCATE usage_events, meterctl.meter_events")
    scene.usage(events)
    before = sum(scene.stripe.totals().values())
    finished = scene.report()
    received = sum(scene.stripe.totals().values()) - before
    totals = finished.totals
    if totals["reported"] != events or str(received) != totals["units"]:
        raise SystemExit(f"not everything arrived: {totals}; Stripe counted {received}")
    return events / finished.wall_s, finished.cpu_s / events * 1e6


CALLS = 2000


def profile() -> int:
    """Print CPU per call of the SDK over two HTTP clients, one thread and no latency, then where it goes."""
    with open_scene(customers=1) as scene:
        print_method(
            f"CPU of one call through the SDK: one thread, no latency, {CALLS} calls each, without a database."
            "\nThe profiler itself makes Python code look dearer than system calls."
        )
        environ = scene.environment
        lean = stripe_client(load_settings(config_file=None, environ=environ, flags={}).stripe, connections_max=1)
        plain = stripe.StripeClient(scene.stripe.api_key, base_addresses={"api": scene.stripe.url})
        clients = {"the SDK's own client (requests)": plain, "meterctl's client (urllib3)": lean}
        rows = [(name, f"{cpu_us(SingleEvents(client)):.0f}") for name, client in clients.items()]
        print_table(("client", "CPU us/call"), rows)
        profiler = cProfile.Profile()
        profiler.runcall(calls, SingleEvents(lean), "profiled")
    print_libraries(profiler)
    return 0


def cpu_us(events: SingleEvents) -> float:
    """Return CPU microseconds per call: of three rounds the least."""
    return min(_timed(lambda n=n: calls(events, f"{id(events)}-{n}")) for n in range(3)) / CALLS * 1e6  # type: ignore[misc]


def _timed(work: Callable[[], None]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def calls(events: SingleEvents, label: str) -> None:
    """Send events one after another."""
    now = datetime.now(UTC)
    for n in range(CALLS):
        event = MeterEvent(
            id=n,
            event_name="ai_suggestion",
            customer="cus_1",
            identifier=f"{label}-{n}",
            payload={"stripe_customer_id": "cus_1", "value": "1"},
            timestamp=now,
        )
        outcome = events.create(event, idempotency_key=f"{label}-{n}:0")
        if outcome.kind is not OutcomeKind.ACCEPTED:
            raise SystemExit(f"unexpected: {outcome}")


def print_libraries(profiler: cProfile.Profile) -> None:
    """Print the profile's own time by library."""
    times: defaultdict[str, float] = defaultdict(float)
    entries: dict[tuple[str, int, str], tuple[float, ...]]
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # untyped, yet unchanged for 30 years
    for (file, _, function), figures in entries.items():
        times[_library(file, function)] += figures[2]
    total = sum(times.values())
    print()
    rows = [
        (name, f"{s / CALLS * 1e6:.0f}", f"{s / total:.0%}")
        for name, s in sorted(times.items(), key=lambda item: -item[1])[:10]
    ]
    print_table(("profiled, own time", "us/call", "share"), rows)


def _library(file: str, function: str) -> str:
    if "socket" in function and file == "~":
        return "system calls on sockets, waiting included"
    if file == "~":
        return "Python's built-in functions"
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return "meterctl" if "meterctl" in parts else f"Python's {parts[-2]}/" if len(parts) > 1 else "Python"


if __name__ == "__main__":
    sys.exit(main())
