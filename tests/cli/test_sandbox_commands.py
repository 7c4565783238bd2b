"""`demo` and `sandbox up`: what they show, and that nothing is left behind however they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Finished


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    temporary = Path("/tmp") / f"mt-demo-{os.getpid()}-{time.monotonic_ns() % 100000}"  # noqa: S108 -- a socket's path must be short
    temporary.mkdir(mode=0o755)
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(temporary)}


@pytest.fixture
def leftovers(environment: dict[str, str]) -> Iterator[list[str]]:
    """Fill after the test with what is left in the temporary directory, and fail if anything is."""
    temporary = Path(environment["TMPDIR"])
    yield []
    deadline = time.monotonic() + 10
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [path.name for path in temporary.iterdir()]
    temporary.rmdir() if not left else None
    assert left == []
    assert processes_mentioning(str(temporary)) == []


def processes_mentioning(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] if text in line else []
    return found


def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "meterctl", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: "subprocess.Popen[str]") -> Finished:
    stdout, stderr = child.communicate(timeout=60)
    return Finished(child.returncode, stdout, stderr)


@pytest.mark.usefixtures("leftovers")
def test_the_demo_bills_every_unit_once_and_leaves_nothing(environment: dict[str, str]) -> None:
    done = finish(start(environment, "demo"))
    assert done.code == 0, done.stderr
    assert "reported 266" in done.stdout
    assert done.stdout.count("cus_acme") == 6
    assert "DIFFERENT" not in done.stdout
    assert "billed nothing twice" in done.stdout
    assert "report: total 38, reported 0, skipped 38" in done.stdout


@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_the_demo_leaves_nothing_when_it_is_interrupted(environment: dict[str, str], number: signal.Signals) -> None:
    child = start(environment, "demo")
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.readline()
    child.send_signal(number)
    done = finish(child)
    assert done.code != 0
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("leftovers")
def test_sandbox_up_prints_exports_that_work_and_ends_on_ctrl_c(environment: dict[str, str]) -> None:
    child = start(environment, "sandbox", "up")
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(4)]
    assert [line.split("=")[0] for line in lines] == [
        "export DATABASE_URL",
        "export STRIPE_SECRET_KEY",
        "export METERCTL_STRIPE_API_BASE",
        "export METERCTL_CONFIG",
    ]
    script = "".join(lines) + f"{sys.executable} -m meterctl report-usage -n"
    shell = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "would send 241 events" in shell.stdout, shell.stderr
    child.send_signal(signal.SIGINT)
    assert finish(child).code == 0
