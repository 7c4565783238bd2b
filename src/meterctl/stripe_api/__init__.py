"""Stripe, through its official SDK. What it answers becomes Outcome values here."""

import os
import sys
from contextlib import suppress

# The SDK reads this on import and would print requests and answers straight to stderr, past our redaction.
os.environ.pop("STRIPE_LOG", None)

_UNUSED_CLIENTS = ("requests", "pycurl", "httpx", "aiohttp")


def _import_sdk() -> None:
    """Import the SDK without the HTTP libraries it tries in turn: ours is urllib3 (`http`), and they take longer.

    An SDK that cannot do without one is imported as usual by the modules that use it.
    """
    hidden = [name for name in _UNUSED_CLIENTS if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # None makes its import an ImportError (import system, 5.3.1)
    try:
        with suppress(ImportError):
            import stripe  # noqa: F401, PLC0415 -- here, while they are hidden
    finally:
        for name in hidden:
            del sys.modules[name]


_import_sdk()
