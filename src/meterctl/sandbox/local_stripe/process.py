"""Start the local Stripe in a process of its own and work its control API, with the standard library alone."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from meterctl.sandbox.local_stripe.keys import KEY_LIVE, KEY_TEST

STOP_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 30.0


class ControlError(Exception):
    """The control API refused; the message says why."""


class StripeProcess:
    """`with StripeProcess("--latency-ms", "100") as stripe:` has `url`, `api_key` and the control API's verbs.

    The child dies with this process, however that ends.
    """

    api_key = KEY_TEST
    api_key_live = KEY_LIVE

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._child: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the child and wait for its URL; raise RuntimeError where it does not come up (its stderr says why)."""
        tie = ("--die-with-parent", str(os.getpid()))
        command = [sys.executable, "-m", "meterctl.sandbox.local_stripe", *tie, *self._arguments]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))  # noqa: S603  # our own module
        self.url = self._child.stdout.readline().strip() if self._child.stdout else ""
        if not self.url:
            self.stop()
            raise RuntimeError("The local Stripe did not come up; what it wrote to stderr says why.")
        return self

    def stop(self) -> None:
        """End the child (SIGTERM, then SIGKILL)."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()
        self._child = None

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._child is None:
            raise RuntimeError("The local Stripe is not started.")
        return self._child.pid

    def control(self, method: str, path: str, body: Mapping[str, object] | Sequence[object] | None = None) -> Any:  # noqa: ANN401  # JSON
        """Call `/_sandbox/{path}` and return its JSON; raise ControlError where it refuses."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.netloc, timeout=CONTROL_TIMEOUT_S)
        try:
            connection.request(method, f"/_sandbox/{path}", body=None if body is None else json.dumps(body))
            response = connection.getresponse()
            document = json.load(response)
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ControlError(document["error"])
        return document

    def create_customer(self, customer_id: str, *, livemode: bool = False) -> None:
        """Add a customer under a chosen id."""
        self.control("POST", "customers", {"id": customer_id, "livemode": livemode})

    def totals(self, *, livemode: bool = False) -> dict[tuple[str, str], Decimal]:
        """Return the exact total per (event_name, customer)."""
        rows = self.control("GET", f"totals?livemode={str(livemode).lower()}")
        return {(row["event_name"], row["customer"]): Decimal(row["total"]) for row in rows}

    def events(self, *, livemode: bool = False) -> list[dict[str, Any]]:
        """Return every stored event as JSON, values as text, instants as RFC 3339."""
        events: list[dict[str, Any]] = self.control("GET", f"events?livemode={str(livemode).lower()}")
        return events

    def add_fault(self, **fields: object) -> None:
        """Put a fault in force: `kind="lost_answer", nth=3, …`."""
        self.control("POST", "faults", fields)
