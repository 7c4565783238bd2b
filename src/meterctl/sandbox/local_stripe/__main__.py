"""The local Stripe in a process of its own: one line with its URL on stdout, then it serves until told to stop."""

import argparse
import os
import signal
import sys
import threading
from dataclasses import fields

from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.server import LocalStripe

PARENT_AT_START = 0
"""Stands for whatever process is the parent when this one starts."""

PARENT_POLL_S = 0.2
"""How often the parent is looked for; portable, unlike the kernel's own notice of its death."""


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or the parent's death where asked; return the exit code."""
    arguments = _parser().parse_args(argv)
    parent = os.getppid() if arguments.die_with_parent == PARENT_AT_START else arguments.die_with_parent
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with LocalStripe(options=_options(arguments), port=arguments.port) as stripe:
        print(stripe.url, flush=True)  # noqa: T201  # the one line that callers wait for
        while not stop.wait(PARENT_POLL_S):
            if parent is not None and os.getppid() != parent:
                break
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m meterctl.sandbox.local_stripe", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument(
        "--die-with-parent",
        type=int,
        nargs="?",
        const=PARENT_AT_START,
        metavar="PID",
        help="stop when the parent process is gone; PID is the parent's, in case it goes before this one is up",
    )
    parser.add_argument("--latency-ms", type=float, default=0, help="time each call takes")
    parser.add_argument(
        "--rate-limit-per-s", type=float, default=None, help="calls a second above which 429 is answered"
    )
    parser.add_argument("--summary-lag-s", type=float, default=0, help="seconds until an event shows in summaries")
    parser.add_argument("--identifier-window-h", type=float, default=24, help="hours a repeated identifier is refused")
    parser.add_argument("--unknown-customer", choices=("now", "later"), default="now", help="when it is rejected")
    parser.add_argument("--account-id", default=StripeOptions().account_id, help="id of the account")
    return parser


def _options(arguments: argparse.Namespace) -> StripeOptions:
    given = vars(arguments)
    return StripeOptions().patched(
        {field.name: given[field.name] for field in fields(StripeOptions) if field.name in given}
    )


if __name__ == "__main__":
    sys.exit(main())
