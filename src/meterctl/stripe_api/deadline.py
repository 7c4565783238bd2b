"""An end for whole calls. A read time-out begins anew with every byte: an answer that drips would never end."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_thread = threading.local()


@dataclass(slots=True)
class _Call:
    ends_s: float
    connection: HTTPConnection | None = None

    def cut(self) -> None:
        """Shut the TCP connection down, TLS or not: whoever reads from it sees its end."""
        if self.connection is not None and isinstance(self.connection.sock, socket.socket):
            with suppress(OSError):
                socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)


class Deadlines:
    """Cuts the connections of calls that last longer than `call_max_s`. May be shared by many threads."""

    def __init__(self, call_max_s: float) -> None:
        self._call_max_s = call_max_s
        self._calls: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._watching = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Watch over the call that this thread makes within the block."""
        call = _thread.call = _Call(ends_s=time.monotonic() + self._call_max_s)
        with self._lock:
            self._calls[id(call)] = call
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, daemon=True, name="deadlines").start()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[id(call)]

    def _watch(self) -> None:
        """Look at all calls now and then; end where there have been none for a while."""
        while True:
            time.sleep(min(1.0, self._call_max_s / 4))
            with self._lock:
                if not self._calls:
                    self._watching = False
                    return
                overdue = [call for call in self._calls.values() if time.monotonic() > call.ends_s]
                for call in overdue:
                    call.cut()


class _Known:
    """Tells the call of its thread which connection serves it."""

    def connect(self) -> None:
        _thread.call.connection = self
        super().connect()  # type: ignore[misc]  # the connection this is mixed into

    def request(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 -- urllib3's own
        _thread.call.connection = self
        super().request(*arguments, **options)  # type: ignore[misc]  # the connection this is mixed into


class _Http(_Known, HTTPConnection):
    """To http: addresses."""


class _Https(_Known, HTTPSConnection):
    """To https: addresses."""


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


def watched(connections: urllib3.PoolManager) -> urllib3.PoolManager:
    """Make the manager's connections known to the deadline of the call they serve; return the manager."""
    connections.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return connections
