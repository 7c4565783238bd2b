"""Memory: peak resident memory of a run against a long queue, a million unreported rows against a hundred thousand.

Collecting precedes delivering, so a run is watched until its first call, given a minute more, and asked to end by
SIGTERM, as systemd would.
"""

import signal
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from _scene import Scene, captured, contents, flags, open_scene, print_method, print_table, print_verdict

if TYPE_CHECKING:
    import subprocess

TARGET_MB = 120.0
TARGET_RATIO = 1.1
POLL_S = 0.1


def main() -> int:
    """Measure both queues, the short one first."""
    chosen = flags(
        __doc__ or "", many=1_000_000, few=100_000, customers=2000, delivery_s=60.0, latency_ms=100.0
    ).parse_args()
    with open_scene(latency_ms=chosen.latency_ms, customers=chosen.customers) as scene:
        print_method(
            f"VmHWM of report-usage (/proc/PID/status, read every {POLL_S:g} s), from its start to"
            f" {chosen.delivery_s:g} s after its first call to a Stripe of {chosen.latency_ms:g} ms;"
            f"\n{chosen.customers} customers, every row unreported."
        )
        rows, peaks = [], []
        for count in (chosen.few, chosen.many):
            collect_s, peak_mb, reported = watched(scene, count, chosen.delivery_s)
            peaks.append(peak_mb)
            rows.append((f"{count:,} rows", f"{peak_mb:.1f}", f"{collect_s:.1f}", f"{reported:,}"))
    print_table(("unreported", "peak MB", "collecting s", "events sent"), rows)
    ratio = peaks[1] / peaks[0]
    return print_verdict(
        f"{peaks[1]:.0f} MB, under {TARGET_MB:.0f}; {ratio:.2f} times that of a tenth, at most {TARGET_RATIO}",
        met=peaks[1] < TARGET_MB and ratio <= TARGET_RATIO,
    )


def watched(scene: Scene, rows: int, delivery_s: float) -> tuple[float, float, int]:
    """Report for a while; return seconds of collecting, peak MB and events sent."""
    scene.execute("TRUNCATE usage_events, meterctl.meter_events")
    scene.usage(rows)
    sent_before = sent(scene)
    with captured() as (stdout, stderr):
        child = scene.start("report-usage", "--json", stdout=stdout, stderr=stderr)
        started_s = time.monotonic()
        while sent(scene) == sent_before:
            alive(child, contents_of=(stdout, stderr))
            time.sleep(POLL_S)
        first_s = time.monotonic()
        peak_mb = 0.0
        while time.monotonic() < first_s + delivery_s:
            peak_mb = max(peak_mb, alive(child, contents_of=(stdout, stderr)))
            time.sleep(POLL_S)
        child.send_signal(signal.SIGTERM)
        code = child.wait()
        if code != 128 + signal.SIGTERM:
            raise SystemExit(f"report-usage ended with {code}:\n{contents(stderr)}")
    return first_s - started_s, peak_mb, sent(scene) - sent_before


def sent(scene: Scene) -> int:
    """Return how many meter events Stripe has answered."""
    counts = scene.stripe.control("GET", "requests?operation=none")["counts"]
    return sum(counts.get("meter_events.create", {}).values())


def alive(child: "subprocess.Popen[str]", *, contents_of: tuple[IO[str], IO[str]]) -> float:
    """Return the child's peak so far in MB; leave with its words where it has ended."""
    if child.poll() is not None:
        raise SystemExit(f"report-usage ended early with {child.returncode}:\n{''.join(map(contents, contents_of))}")
    status = Path(f"/proc/{child.pid}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
