"""The process that owns the server: whatever becomes of its parent, nothing of the server stays behind.

It runs as a program of its own (standard library only, in its own session, so that no signal of a terminal reaches it),
creates the directory, starts initdb and the server as its children, and obeys requests: one JSON object a line on
standard input, one answer a line on standard output. The kernel closes that pipe however the parent dies. At its end
of file the watchdog stops its children, waits for them, removes the directory and leaves. As it creates all that it
has to remove, there is no instant at which a dying parent could leave something unknown behind.

    create  parents, prefix, owner           -> directory
    run     argv, log                        -> exit_status     (initdb)
    start   argv, log, pid_file, timeout_s   -> ready, exit_status
    stop                                     -> exit_status     (in order: clients are disconnected, data are written)
    kill                                     -> exit_status     (every process at once, as in a crash)
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STDIN, STDOUT = 0, 1
PAUSE_S = 0.01
ORPHANS_END_WITHIN_S = 5.0

SERVER_ENDING = ((signal.SIGINT, 4.0), (signal.SIGQUIT, 6.0))
"""Signals to the server, and seconds that each may take. INT is "fast": disconnect and write everything. QUIT is
"immediate": backends have 5 s to obey before the server kills them. SIGKILL follows."""

INITDB_ENDING = ((signal.SIGTERM, 2.0),)
"""The same for initdb and the single-user server it runs, which on TERM gives back its shared memory."""

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
IPC_RMID = 0  # sys/ipc.h
PID_FILE_SHARED_MEMORY_LINE = (
    7  # PostgreSQL's src/include/utils/pidfile.h: LOCK_FILE_LINE_SHMEM_KEY, then ..._PM_STATUS
)
PID_FILE_STATUS_LINE = 8


class ParentGoneError(Exception):
    """The pipe from our parent has ended, or spoke out of turn."""


class Watchdog:
    """One directory, and at most one child that works in it."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.pid_file: Path | None = None
        self.account: dict[str, Any] = {}
        self.child: subprocess.Popen[bytes] | None = None
        self.ending: tuple[tuple[signal.Signals, float], ...] = ()

    def create(self, parents: list[str], prefix: str, owner: list[int] | None) -> dict[str, Any]:
        """Create the directory in the first of `parents` that takes it; `owner` (uid, gid) shall run the server."""
        for number, parent in enumerate(parents, start=1):
            try:
                self.directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
                break
            except OSError:
                if number == len(parents):
                    raise
        if owner is not None and self.directory is not None:
            os.chown(self.directory, *owner)
            self.account = {"user": owner[0], "group": owner[1], "extra_groups": []}
        return {"directory": str(self.directory)}

    def run(self, argv: list[str], log: str) -> dict[str, Any]:
        """Run a program to its end."""
        child = self._spawn(argv, log, INITDB_ENDING)
        while child.poll() is None:
            _pause()
        return {"exit_status": child.returncode}

    def start(self, argv: list[str], log: str, pid_file: str, timeout_s: float) -> dict[str, Any]:
        """Start the server; answer when it accepts connections, has exited, or did neither in time (and is stopped)."""
        self.pid_file = Path(pid_file)
        child = self._spawn(argv, log, SERVER_ENDING)
        deadline = time.monotonic() + timeout_s
        while child.poll() is None and time.monotonic() < deadline:
            if self._is_ready(child.pid):
                return {"ready": True, "exit_status": None}
            _pause()
        return {"ready": False, **self.stop()}

    def stop(self) -> dict[str, Any]:
        """End the child, gently first."""
        child, self.child = self.child, None
        if child is None:
            return {"exit_status": None}
        for number, seconds in self.ending:
            _signal_group(child, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return {"exit_status": child.wait(seconds)}
        return self._kill(child)

    def kill(self) -> dict[str, Any]:
        """End the server and all its backends at once."""
        child, self.child = self.child, None
        return {"exit_status": None} if child is None else self._kill(child)

    def clean_up(self) -> None:
        """Leave nothing: no process, no shared memory, no directory."""
        self.stop()
        _kill_orphans()
        _release_shared_memory(self.pid_file)
        for _ in range(100):  # a file may appear while its directory is being removed
            if self.directory is None or not self.directory.exists():
                return
            shutil.rmtree(self.directory, ignore_errors=True)
            time.sleep(PAUSE_S)

    def _spawn(
        self, argv: list[str], log: str, ending: tuple[tuple[signal.Signals, float], ...]
    ) -> "subprocess.Popen[bytes]":
        self.ending = ending
        with Path(log).open("ab") as output:
            self.child = subprocess.Popen(  # noqa: S603 -- our parent says what to start
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                start_new_session=True,
                **self.account,
            )
        return self.child

    def _kill(self, child: "subprocess.Popen[bytes]") -> dict[str, Any]:
        _signal_group(child, signal.SIGKILL)
        exit_status = child.wait()
        _kill_orphans()
        return {"exit_status": exit_status}

    def _is_ready(self, pid: int) -> bool:
        """Read the server's pid file: its first line says whose it is (an older one may lie there after a crash)."""
        lines = _lines(self.pid_file)
        return (
            len(lines) >= PID_FILE_STATUS_LINE
            and lines[0] == str(pid)
            and lines[PID_FILE_STATUS_LINE - 1].strip() == "ready"
        )


def _pause() -> None:
    """Wait a little. While the parent waits for an answer it is silent: anything on the pipe means that it is gone."""
    if select.select([STDIN], [], [], PAUSE_S)[0]:
        raise ParentGoneError


def _lines(path: Path | None) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines() if path else []
    except OSError:
        return []


def _signal_group(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Signal the child and what shares its process group: initdb's helpers do; backends are told by the server."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


def _adopt_orphans() -> None:
    """Have grandchildren whose parent died become our children (Linux), so that none escapes `_kill_orphans`."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_orphans() -> None:
    """Kill all our children, and theirs as they become ours, until none is left."""
    deadline = time.monotonic() + ORPHANS_END_WITHIN_S
    while time.monotonic() < deadline:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(PAUSE_S)
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    """Yield the ids of our children, where /proc tells them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _after_name(stat)
        if len(fields) > 1 and int(fields[1]) == os.getpid():
            yield int(stat.parent.name)


def _after_name(stat: Path) -> list[str]:
    """Return state, parent's id, … of a process: what follows its name, which may hold blanks and parentheses."""
    return " ".join(_lines(stat)).rpartition(")")[2].split()


def _release_shared_memory(pid_file: Path | None) -> None:
    """Give back the System V segment of a server that was killed. A server that ended in order removed its pid file."""
    lines = _lines(pid_file)
    if len(lines) >= PID_FILE_SHARED_MEMORY_LINE:
        words = lines[PID_FILE_SHARED_MEMORY_LINE - 1].split()  # key, id
        with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
            ctypes.CDLL(None).shmctl(int(words[1]), IPC_RMID, None)


def _requests() -> Iterator[dict[str, Any]]:
    """Yield the parent's requests until it closes the pipe or is gone."""
    with os.fdopen(STDIN, "rb", buffering=0, closefd=False) as pipe:
        for line in pipe:
            yield json.loads(line)


def _answer(values: dict[str, Any]) -> None:
    try:
        os.write(STDOUT, json.dumps(values).encode() + b"\n")
    except BrokenPipeError as error:
        raise ParentGoneError from error


def _obey(watchdog: Watchdog) -> None:
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "create": watchdog.create,
        "run": watchdog.run,
        "start": watchdog.start,
        "stop": watchdog.stop,
        "kill": watchdog.kill,
    }
    for request in _requests():
        action = actions[request.pop("do")]
        try:
            values = action(**request)
        except OSError as error:
            values = {"error": str(error)}
        _answer(values)


def main() -> None:
    """Obey until the parent is gone, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # Our only end is the pipe's. A handler rather than SIG_IGN, which our children would inherit.
        signal.signal(number, lambda *_: None)
    _adopt_orphans()
    watchdog = Watchdog()
    try:
        with contextlib.suppress(ParentGoneError):
            _obey(watchdog)
    finally:
        watchdog.clean_up()


if __name__ == "__main__":
    main()
