"""However the owner of an embedded server dies, nothing of the server stays: no process, no directory."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from meterctl.sandbox.postgres import EmbeddedPostgres

ROOT = Path(__file__).parent.parent.parent
DEADLY = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")

pytestmark = [
    pytest.mark.usefixtures("pg_server"),  # where no server runs at all, these skip with its reason
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

OWNER = """
import os, signal, sys, time
from meterctl.sandbox.postgres import EmbeddedPostgres

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore some of these
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
with EmbeddedPostgres() as server:
    AFTER_START
    print("running", flush=True)
    time.sleep(600)
"""


def processes_naming(text: str) -> dict[int, str]:
    """Return the processes, zombies aside, whose command line holds `text`."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if text in command:
                found[int(path.parent.name)] = command
    return found


def wait_until(what: str, condition: Callable[[], bool], *, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.005)


def children_of(pid: int) -> dict[int, str]:
    """Return the children of a process with their command lines."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                children[int(path.parent.name)] = (path.parent / "cmdline").read_text()
    return children


@contextlib.contextmanager
def owner_process(tmp: Path, *, after_start: str = "pass") -> Iterator["subprocess.Popen[str]"]:
    """Run a program that starts a server below `tmp`, says so and waits."""
    environment = os.environ | {"TMPDIR": str(tmp), "PYTHONPATH": str(ROOT / "src")}
    program = OWNER.replace("AFTER_START", after_start)
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(owner: "subprocess.Popen[str]") -> str:
    """Return the next line of the owner."""
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


def assert_nothing_outlives(owner: "subprocess.Popen[str]", signal_name: str, tmp: Path) -> None:
    """Have the owner die of the signal; within seconds neither server nor watchdog nor directory is left."""
    watchdogs = [pid for pid, command in children_of(owner.pid).items() if "watchdog.py" in command]
    assert watchdogs
    owner.send_signal(signal.Signals[signal_name])
    owner.wait()
    wait_until("no process of the server", lambda: not processes_naming(str(tmp)))
    wait_until("no directory of the server", lambda: not list(tmp.iterdir()))
    wait_until("no watchdog", lambda: not set(watchdogs) & set(processes_naming("watchdog.py")))


@pytest.mark.parametrize("name", DEADLY)
def test_nothing_outlives_an_owner_that_dies_while_it_runs(name: str, short_tmp: Path) -> None:
    with owner_process(short_tmp) as owner:
        assert said(owner) == "running"
        assert processes_naming(f"{short_tmp}/meterctl-pg-")
        assert_nothing_outlives(owner, name, short_tmp)


@pytest.mark.parametrize("name", DEADLY)
def test_nothing_outlives_an_owner_that_dies_during_initdb(name: str, short_tmp: Path) -> None:
    with owner_process(short_tmp) as owner:
        wait_until("initdb", lambda: any("initdb" in line for line in processes_naming(str(short_tmp)).values()))
        assert_nothing_outlives(owner, name, short_tmp)


@pytest.mark.parametrize("delay_ms", [0, 20, 40, 80, 160, 320])
def test_nothing_outlives_an_owner_that_is_killed_at_any_moment(delay_ms: int, short_tmp: Path) -> None:
    """Between two steps as well: before there is a directory, between initdb and the server, while it starts."""
    with owner_process(short_tmp) as owner:
        wait_until("the watchdog", lambda: any("watchdog.py" in line for line in children_of(owner.pid).values()))
        time.sleep(delay_ms / 1000)
        assert_nothing_outlives(owner, "SIGKILL", short_tmp)


def test_a_forked_child_does_not_keep_the_server_alive(short_tmp: Path) -> None:
    fork = "if (child := os.fork()) == 0: time.sleep(60); os._exit(0)\n    print(child, flush=True)"
    with owner_process(short_tmp, after_start=fork) as owner:
        child = int(said(owner))
        assert said(owner) == "running"
        try:
            assert_nothing_outlives(owner, "SIGKILL", short_tmp)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_stops_its_copy_does_not_stop_ours() -> None:
    with EmbeddedPostgres() as server:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        with psycopg.connect(server.conninfo()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_owner_that_dies_after_a_crash_of_the_server_leaves_no_shared_memory(short_tmp: Path) -> None:
    before = unattached_segments()
    with owner_process(short_tmp, after_start="server.kill()") as owner:
        assert said(owner) == "running"
        assert unattached_segments() - before
        assert_nothing_outlives(owner, "SIGKILL", short_tmp)
    wait_until("no segment of the server", lambda: not unattached_segments() - before)


def unattached_segments() -> set[str]:
    """Return the ids of the System V shared memory segments that no process uses."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[6] == "0"}
