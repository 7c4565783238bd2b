"""Our end of the watchdog's pipe."""

import contextlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meterctl.errors import UnavailableError

_WATCHDOG = Path(__file__).with_name("watchdog.py")


class Guard:
    """A running watchdog. Closing it, or our death, ends and removes everything that it started.

    Belongs to the process that made it: a forked child drops its copy of the pipe at once, so that it cannot keep the
    watchdog waiting. Other programs we start do not inherit the pipe (Python's pipes are close-on-exec).
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # `-I -S`: neither PYTHONPATH nor site-packages; standard error is nobody's, so as not to hold ours open.
        self._process = subprocess.Popen(  # noqa: S603 -- our own program, started by our own interpreter
            [sys.executable, "-I", "-S", str(_WATCHDOG)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
        _open_guards.add(self)

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Send one request and return its answer (`watchdog.py` lists them). Raises UnavailableError if it failed."""
        requests, answers = self._process.stdin, self._process.stdout
        line = b""
        if requests is not None and answers is not None and not requests.closed:
            with contextlib.suppress(BrokenPipeError):
                requests.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
                line = answers.readline()
        if not line:
            raise UnavailableError(f"the embedded PostgreSQL is gone (asked to {do})", hint="start it again")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnavailableError(f"the embedded PostgreSQL could not {do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Have everything ended and removed; return when it is. May be called again."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self._process.stdin.close()
        self._process.wait()  # no time limit of ours: each step of the watchdog's has one
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _forget(self) -> None:
        """Drop the pipe in a forked child, which is not the watchdog's parent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.returncode = 0  # else its finalizer warns of a process that was never ours


_open_guards: "weakref.WeakSet[Guard]" = weakref.WeakSet()


def _forget_all() -> None:
    for guard in list(_open_guards):
        guard._forget()  # noqa: SLF001 -- the hook is part of the class, but must not keep its instances alive


os.register_at_fork(after_in_child=_forget_all)
