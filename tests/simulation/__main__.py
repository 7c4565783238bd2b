"""`./dev simulate --seeds N --jobs J`: many seeds, each a company of its own, in several processes.

Prints each seed that fails with its steps, and at the end what was run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import IO

from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import clone, make_template
from simulation.planted import DEFECTS, planted
from simulation.seeds import COMPANIES, simulate


def main() -> int:
    """Run them; return the exit code."""
    parser = argparse.ArgumentParser(prog="./dev simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--plant", choices=sorted(DEFECTS), help="switch on a defect that the simulation must find")
    parser.add_argument("--company", choices=sorted(COMPANIES), default="rows", help="whose nights (rows)")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part is not None:
        seeds = range(asked.first + asked.part, asked.first + asked.seeds, asked.jobs)
        return _part(seeds, asked.company, asked.plant)
    started_s = time.monotonic()
    failed = _in_processes(asked.jobs)
    took_s = time.monotonic() - started_s
    ran = f"{asked.seeds} seeds of {asked.company} from {asked.first}"
    _say(f"{ran}, {failed} failed, {took_s:.0f} s in {asked.jobs} processes")
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- a program's own voice


def _in_processes(jobs: int) -> int:
    """Run each part in a process of its own, relaying what it says; return how many seeds failed."""
    with tempfile.TemporaryFile("w+") as errors:
        children = [_child(part, errors) for part in range(jobs)]
        failed = sum(_relayed(child.stdout or ()) for child in children)
        if any(child.wait() for child in children):
            errors.seek(0)
            sys.exit(f"a process of the simulation broke: {errors.read()[-2000:]}")
    return failed


def _child(part: int, errors: IO[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "simulation", *sys.argv[1:], "--part", str(part)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def _relayed(lines: Iterable[str]) -> int:
    count = 0
    for line in lines:
        count += line.startswith("seed ")
        _say(line.rstrip("\n"))
    return count


def _part(seeds: range, company: str, plant: str | None) -> int:
    for failure in _failures(seeds, company, plant):
        _say(failure)
    return 0


def _failures(seeds: range, company: str, plant: str | None) -> Iterator[str]:
    server = EmbeddedPostgres()
    server.start()
    try:
        template = make_template(server)
        for seed in seeds:
            try:
                with clone(server, template) as url, planted(plant):
                    simulate(url, seed, company=company)
            except AssertionError as error:
                yield str(error)
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
