"""The server: a thread with an event loop of its own, a port on loopback, and a switch to go away and come back."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web

from meterctl.sandbox.local_stripe.clock import Real
from meterctl.sandbox.local_stripe.control import Control
from meterctl.sandbox.local_stripe.courier import Courier
from meterctl.sandbox.local_stripe.event_console import EventConsole
from meterctl.sandbox.local_stripe.keys import KEY_LIVE, KEY_TEST
from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.serving import Service

Result = TypeVar("Result")

HOST = "127.0.0.1"
BACKLOG = 1024
KEEP_ALIVE_S = 3600.0
"""Longer than any pool keeps an idle connection: who leaves is the client, unless a fault says otherwise."""

START_TIMEOUT_S = 10.0
CANCEL_AFTER_S = 0.01
"""How long a stopping server waits for running requests; 0 would mean for ever to aiohttp."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that goes by the real monotonic clock even while a test holds `time` still."""

    def time(self) -> float:
        return Real.monotonic()


class LocalStripe(EventConsole):
    """A Stripe for Billing Meters on `url`, to which the `stripe` SDK talks unchanged.

    `with LocalStripe(options=StripeOptions(…), clock=lambda: instant) as stripe:` or `start()` and `stop()`. Then
    `StripeClient(stripe.api_key, base_addresses={"api": stripe.url, "meter_events": stripe.url})`. `port` 0 takes a
    free one. Everything is in memory.
    """

    api_key = KEY_TEST
    api_key_live = KEY_LIVE

    def __init__(
        self,
        *,
        options: StripeOptions | None = None,
        clock: Callable[[], datetime] | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(options, clock)
        self._wanted_port = port
        self._running_loop: _Loop | None = None
        self._place: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._courier: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    @property
    def account_id(self) -> str:
        """The account's id."""
        return self.options.account_id

    @property
    def port(self) -> int:
        """The port, the same from start to stop, listening or not."""
        if self._place is None:
            raise RuntimeError("The local Stripe is not started.")
        port: int = self._place.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> Self:
        """Serve in a thread of its own; raise OSError where the port is taken."""
        # Bound, never listening: it keeps the port ours (and refusing) while nothing listens
        self._place = _bound(self._wanted_port)
        self._running_loop = _Loop()
        self._thread = threading.Thread(target=self._serve, name="local-stripe", daemon=True)
        self._thread.start()
        self._web = self._run(self._make_web())
        self.start_listening()
        self._send_courier()
        return self

    def stop(self) -> None:
        """Close everything; a second call does nothing."""
        if self._thread is None or self._place is None:
            return
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()
        self._thread = self._place = self._running_loop = self._courier = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop_listening(self) -> None:
        """Refuse connections and cut those there are. What is being executed goes on, as behind a broken network."""
        self._run(self._stop_listening())

    def start_listening(self) -> None:
        """Take connections (again) on the same port."""
        self._run(self._start_listening())

    def add_endpoint(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        types: Sequence[str] = ("*",),
        thin: bool = False,
        livemode: bool = False,
    ) -> None:
        """Deliver as the console says, from now on or once started."""
        super().add_endpoint(url, secrets, types=types, thin=thin, livemode=livemode)
        self._send_courier()

    @property
    def _loop(self) -> _Loop:
        if self._running_loop is None:
            raise RuntimeError("The local Stripe is not started.")
        return self._running_loop

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)

    async def _make_web(self) -> web.Server:
        service = Service(self.engine, Control(self, self._go_down))
        return web.Server(service.handle, access_log=None, keepalive_timeout=KEEP_ALIVE_S)

    async def _start_listening(self) -> None:
        if self._listener is None and self._web is not None:
            self._listener = await self._loop.create_server(self._web, sock=_bound(self.port), backlog=BACKLOG)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            # asyncio loses the socket of a connection being accepted while its server closes: stop accepting first
            for listening in self._listener.sockets:
                self._loop.remove_reader(listening.fileno())
            await _let_callbacks_run()
            self._listener.close()
            self._listener = None
        for connection in [] if self._web is None else self._web.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _go_down(self, seconds: float) -> None:
        # a moment's grace, so that the answer to the request that asked for it still goes out
        self._loop.call_later(0.05, lambda: self._spawn(self._stop_listening()))
        self._loop.call_later(0.05 + seconds, lambda: self._spawn(self._start_listening()))

    def _send_courier(self) -> None:
        """Let the courier go its rounds, where there are endpoints and none goes yet. For any thread."""
        if self._running_loop is not None and self.engine.endpoints:
            self._running_loop.call_soon_threadsafe(self._start_courier)

    def _start_courier(self) -> None:
        if self._courier is None:
            self._courier = self._loop.create_task(Courier(self.engine).run())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._errands.add(self._loop.create_task(work))  # a task nobody holds may be collected unfinished

    async def _close(self) -> None:
        await self._stop_listening()
        if self._web is not None:
            await self._web.shutdown(CANCEL_AFTER_S)
        remaining = asyncio.all_tasks() - {asyncio.current_task()}
        for task in remaining:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*remaining, return_exceptions=True)
        await _let_callbacks_run()  # cut connections close their sockets in one


async def _let_callbacks_run() -> None:
    for _ in range(5):  # accepting takes three turns of the loop
        await asyncio.sleep(0)


def _bound(port: int) -> socket.socket:
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
    except OSError:
        taken.close()
        raise
    return taken
