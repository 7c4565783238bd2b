"""Whether a webhook is from Stripe: its `Stripe-Signature`, verified over the very bytes that were received.

The header is `t=<Unix seconds>,v1=<hex>[,v1=<hex>…][,v0=<hex>]`. A v1 is HMAC-SHA256 over `<t>.<body>` under a secret
of the endpoint; while one secret replaces another, Stripe sends a v1 for each (docs.stripe.com/webhooks).
What is taken as genuine here, Stripe's own library takes too, as long as the body is UTF-8.
"""

import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from meterctl.errors import InputError

_SECONDS = re.compile(r"[1-9][0-9]{0,10}")  # written in one way only, and up to the year 5138
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECOND = timedelta(seconds=1)


class WebhookRefusedError(InputError):
    """What was received cannot be taken for an event of Stripe's. `code` names the reason for programs."""

    def __init__(self, code: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookEvent:
    """What every event of Stripe's has."""

    id: str
    type: str
    object: str
    """`event`: a snapshot, whole; `v2.core.event`: thin, with its data left to be fetched."""


def verify(body: bytes, header: str, secrets: Sequence[str], *, now: datetime, tolerance: timedelta) -> datetime:
    """Return when the body was signed, which was with one of the secrets. Raises WebhookRefusedError.

    `malformed_header` and `no_match` come first: `too_old` and `in_future` are said of genuine signatures only.
    """
    seconds, signatures = _parsed(header)
    if not any(_made(secret, seconds, body, signatures) for secret in secrets):
        which = "the secret" if len(secrets) == 1 else f"any of the {len(secrets)} secrets"
        raise WebhookRefusedError(
            "no_match",
            f"no v1 signature matches {which}",
            hint="verify the body byte for byte as it came, no line break added, nothing parsed and written anew;"
            " with the secret of this endpoint, for each has its own",
        )
    signed_at = datetime.fromtimestamp(int(seconds), UTC)
    _require_recent(now - signed_at, tolerance)
    return signed_at


def _made(secret: str, seconds: str, body: bytes, signatures: Sequence[str]) -> bool:
    expected = hmac.digest(secret.encode(), b"%s.%s" % (seconds.encode(), body), "sha256").hex()
    return any(hmac.compare_digest(expected, signature) for signature in signatures)


def _require_recent(age: timedelta, tolerance: timedelta) -> None:
    allowed = f"more than the {tolerance // _SECOND} s allowed"
    if age > tolerance:
        raise WebhookRefusedError(
            "too_old",
            f"the signature is genuine, but {_seconds(age)} s old, {allowed}",
            hint="Stripe signs each delivery anew; if this one was kept, say with --at when it came",
        )
    if -age > tolerance:
        raise WebhookRefusedError(
            "in_future",
            f"the signature is genuine, but {_seconds(-age)} s in the future, {allowed}",
            hint="set this machine's clock, or give the right --at",
        )


def _seconds(span: timedelta) -> int:
    """Round up, so that what is a little too much does not look like just enough."""
    return -(-span // _SECOND)


def _parsed(header: str) -> tuple[str, list[str]]:
    """Return the time as it was signed, and the v1 signatures, at least one. Raises WebhookRefusedError."""
    parts = [part.partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    signatures = [value for name, _, value in parts if name == "v1"]
    if len(times) != 1:
        raise _malformed(f"has {'more than one' if times else 'no'} t" if header.strip() else "is empty")
    if not _SECONDS.fullmatch(times[0]):
        raise _malformed("has a t that is no Unix time in whole seconds")
    if not signatures:
        raise _malformed("has no v1 signature; a v0 proves nothing")
    if not all(map(_SHA256.fullmatch, signatures)):
        raise _malformed("has a v1 that is not 64 hexadecimal digits")
    return times[0], signatures


def _malformed(what: str) -> WebhookRefusedError:
    return WebhookRefusedError(
        "malformed_header",
        f"the Stripe-Signature header {what}",
        hint="give the header's value whole, without its name: t=…,v1=…",
    )


def parse_event(body: bytes) -> WebhookEvent:
    """Given a verified body, return its event, snapshot or thin. Raises WebhookRefusedError."""
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise _no_event("is empty" if not body else "is not JSON in UTF-8") from None
    if not isinstance(found, dict) or found.get("object") not in ("event", "v2.core.event"):
        raise _no_event('is no object of the kind "event" or "v2.core.event"')
    names = [found.get(key) for key in ("id", "type")]
    if not all(isinstance(name, str) and name for name in names):
        raise _no_event("has no id or no type")
    return WebhookEvent(id=found["id"], type=found["type"], object=found["object"])


def _no_event(what: str) -> WebhookRefusedError:
    return WebhookRefusedError(
        "no_event",
        f"the signature is genuine, but the body {what}",
        hint="only events can be used: look at what signed it, and at what it sends",
    )
