"""Waiting for what a child process does."""

import time
from collections.abc import Callable

from cli.conftest import Shell

WAIT_MAX_S = 30.0


def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds; fail the test if it never does."""
    give_up_s = time.monotonic() + WAIT_MAX_S
    while not condition():
        assert time.monotonic() < give_up_s, "what the test waits for does not come"
        time.sleep(0.01)


def until_sent(shell: Shell, count: int = 1) -> None:
    """Return as soon as Stripe has so many events."""
    until(lambda: len(shell.stripe.events()) >= count)
