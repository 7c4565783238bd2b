"""What is delivered to an application's endpoints: which events, signed how, and what became of each attempt.

The header is `t=<unix seconds>,v1=<hex>`, HMAC-SHA256 of `<t>.<body>`, with one v1 for each of the endpoint's secrets
(https://docs.stripe.com/webhooks).
"""

import hmac
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from meterctl.sandbox.local_stripe.events import SnapshotEvent, ThinEvent
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.store import Books


@dataclass(eq=False, kw_only=True, slots=True)
class Endpoint:
    """Where events of one mode and kind are sent, from event number `position` on. `types` are patterns."""

    url: str
    secrets: tuple[str, ...]
    types: tuple[str, ...]
    thin: bool
    livemode: bool
    position: int = 0

    def take_new(self, books: Books) -> list[SnapshotEvent | ThinEvent]:
        """Return the events that have come to be since the last call and that this endpoint wants."""
        events: Sequence[SnapshotEvent | ThinEvent] = books.thin_events if self.thin else books.snapshots
        fresh = events[self.position :]
        self.position = len(events)
        return [event for event in fresh if any(fnmatchcase(event.type, pattern) for pattern in self.types)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One attempt, signed at `t` (unix seconds); `status` is None where no answer came."""

    event_id: str
    url: str
    status: int | None
    t: int

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint took the event; a redirect is a failure."""
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004  # HTTP's own numbers

    def record(self) -> Json:
        """Return it as JSON."""
        return {"event_id": self.event_id, "url": self.url, "status": self.status, "t": self.t}


def check_loopback(url: str) -> None:
    """Raise ValueError for a URL that leads away from this machine."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
        raise ValueError(
            f"Events are delivered to http:// URLs on this machine alone, such as 127.0.0.1, not to {url}."
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def body_of(event: SnapshotEvent | ThinEvent) -> bytes:
    """Return what is sent of an event; of a thin one the notification."""
    document = event.document() if isinstance(event, SnapshotEvent) else event.document(with_data=False)
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


def signature(body: bytes, secrets: Sequence[str], t: int) -> str:
    """Return the `Stripe-Signature` of a body sent at `t`."""
    made = (hmac.digest(secret.encode(), b"%d.%s" % (t, body), "sha256").hex() for secret in secrets)
    return ",".join((f"t={t}", *(f"v1={each}" for each in made)))
