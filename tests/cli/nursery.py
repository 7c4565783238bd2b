"""A process that has imported the command and forks a child for each run: as real a process, half a second sooner.

Run as a script it is that process, alone and without threads; `Nursery` is what tests hold of it. The child has the
arguments, the environment and the streams of the request, and ends as a command does that was started anew. What
matters before Python runs (its own options and variables, closed streams, a terminal) takes a start of its own.
"""

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

MESSAGE_BYTES_MAX = 1 << 17
STATUS_BYTES = 64


@cache
def nursery() -> "Nursery":
    """Return the one of this process. It ends with the process: nobody holds the other end of its stdin then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen([sys.executable, __file__], stdin=theirs.fileno())
    atexit.register(_end, ours, process)
    return Nursery(requests=ours)


def _end(requests: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    requests.close()
    process.wait(timeout=10)


@dataclass(kw_only=True)
class Nursery:
    """Starts commands; several threads may."""

    requests: socket.socket
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, stripe_base: str | None, timeout_s: float
    ) -> tuple[int, str, str]:
        """Run the command to its end; return exit code, stdout and stderr.

        `stripe_base`: the address of Stripe's own API, where that is to be another.
        """
        streams = [os.memfd_create(name) for name in ("stdout", "stderr")]
        status, theirs = os.pipe()
        try:
            request = {"arguments": list(arguments), "environment": dict(environment), "stripe_base": stripe_base}
            self._send(json.dumps(request).encode(), [*streams, theirs])
            os.close(theirs)
            code = _waited(status, timeout_s)
            return code, _text(streams[0]), _text(streams[1])
        finally:
            for number in (*streams, status):
                os.close(number)

    def _send(self, message: bytes, numbers: list[int]) -> None:
        with self._lock:
            socket.send_fds(self.requests, [message], numbers)


def _waited(status: int, timeout_s: float) -> int:
    """Read the command's process number and then its exit code."""
    pid = int(os.read(status, STATUS_BYTES))
    timer = threading.Timer(timeout_s, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        return int(os.read(status, STATUS_BYTES))
    finally:
        timer.cancel()


def _text(stream: int) -> str:
    size = os.fstat(stream).st_size
    return os.pread(stream, size, 0).decode()


# What follows runs in the process itself.


def serve() -> None:
    """Fork for each request; return in the child that is to be the command."""
    _import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the commands
    requests = socket.socket(fileno=os.dup(0))
    while True:
        message, numbers, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            _wait_for_command(message, numbers)
            return
        for number in numbers:
            os.close(number)


def _import_everything() -> None:
    import importlib  # noqa: PLC0415 -- only in this process
    import pkgutil  # noqa: PLC0415 -- the same

    for package in ("meterctl.cli", "meterctl.render"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # else each child would copy what it only looks through for garbage


def _wait_for_command(message: bytes, numbers: Sequence[int]) -> None:
    """Fork the command, in which this returns; here, say its process number and its exit code."""
    stdout, stderr, status = numbers
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(json.loads(message), stdout, stderr)
        return
    os.write(status, b"%d" % pid)
    _, ended = os.waitpid(pid, 0)
    os.write(status, b"%d" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def _become(request: Mapping[str, object], stdout: int, stderr: int) -> None:
    import random  # noqa: PLC0415 -- only in this process

    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate((nothing, stdout, stderr)):
        os.dup2(stream, number)
    os.closerange(3, 256)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 -- as long as the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 -- the same
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 -- the same
    environment, arguments = request["environment"], request["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    random.seed()
    sys.argv = ["meterctl", *arguments]
    if request["stripe_base"] is not None:
        import stripe  # noqa: PLC0415 -- imported already

        stripe.DEFAULT_API_BASE = str(request["stripe_base"])


if __name__ == "__main__":
    serve()
    from meterctl.__main__ import run

    run()
