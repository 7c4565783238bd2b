"""Start-up: `meterctl --help`, and a run that finds nothing to do, as cron starts it every hour.

`--imports` shows the dearest imports of either instead.
"""

import re
import statistics
import subprocess
import sys
import time

from _scene import METERCTL, Scene, flags, open_scene, print_method, print_table, print_verdict

HELP_TARGET_MS = 150.0
IDLE_TARGET_MS = 600.0
IMPORTS_SHOWN = 25


def main() -> int:
    """Measure both, or list imports."""
    parser = flags(__doc__ or "", repeats=20)
    parser.add_argument("--imports", action="store_true", help="show the dearest imports")
    chosen = parser.parse_args()
    with open_scene(customers=10) as scene:
        if chosen.imports:
            return show_imports(scene)
        print_method(
            f"Wall time of the installed command from fork to exit, {chosen.repeats} times each after one to warm up."
            "\nNothing to do: report-usage on a database and a Stripe without latency, with no unreported row."
        )
        commands = {"--help": ["--help"], "report-usage, nothing to do": ["report-usage", "-q"]}
        times = {name: timed(scene, words, chosen.repeats) for name, words in commands.items()}
    print_table(
        ("command", "least ms", "median ms"),
        [(name, f"{min(ms):.0f}", f"{statistics.median(ms):.0f}") for name, ms in times.items()],
    )
    help_ms, idle_ms = (min(ms) for ms in times.values())
    return print_verdict(
        f"--help {help_ms:.0f} ms, under {HELP_TARGET_MS:.0f}; nothing to do {idle_ms:.0f} ms,"
        f" under {IDLE_TARGET_MS:.0f}",
        met=help_ms < HELP_TARGET_MS and idle_ms < IDLE_TARGET_MS,
    )


def timed(scene: Scene, words: list[str], repeats: int) -> list[float]:
    """Return milliseconds of each run but the first."""
    return [_once_ms(scene, words) for _ in range(repeats + 1)][1:]


def _once_ms(scene: Scene, words: list[str]) -> float:
    started_s = time.perf_counter()
    finished = subprocess.run([METERCTL, *words], env=scene.environment, capture_output=True, check=False, text=True)
    elapsed_ms = (time.perf_counter() - started_s) * 1000
    if finished.returncode != 0:
        raise SystemExit(f"meterctl {' '.join(words)} ended with {finished.returncode}:\n{finished.stderr}")
    return elapsed_ms


_IMPORT = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)")


def show_imports(scene: Scene) -> int:
    """Print the imports that take longest by themselves, and whole packages of ours and others."""
    for words in (["--help"], ["report-usage", "-q"]):
        command = [sys.executable, "-X", "importtime", "-m", "meterctl", *words]
        told = subprocess.run(command, env=scene.environment, capture_output=True, check=True, text=True).stderr
        seen = [(int(total), int(own), name) for own, total, _, name in _IMPORT.findall(told)]
        print(f"meterctl {' '.join(words)}: {len(seen)} modules, {sum(own for _, own, _ in seen) / 1000:.0f} ms")
        dearest = sorted(seen, reverse=True)[:IMPORTS_SHOWN]
        rows = [(module, f"{total / 1000:.1f}", f"{own / 1000:.1f}") for total, own, module in dearest]
        print_table(("module", "ms with its own", "ms alone"), rows)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
