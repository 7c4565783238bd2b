"""Idempotency keys: the first answer is kept and given again, errors and 500s included.

https://docs.stripe.com/api/idempotent_requests
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from meterctl.sandbox.local_stripe.errors import idempotency_in_use, idempotency_mismatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A response: status, body and headers. `request_id` is the one of the request that was executed."""

    status: int
    body: bytes
    headers: dict[str, str]
    request_id: str
    content_type: str = "application/json"
    replayed: bool = False


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    since: datetime
    answer: Answer | None = None


class IdempotencyKeys:
    """The keys of one account and mode. A key is free again `window` after its first request."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def begin(self, key: str, fingerprint: bytes, *, now: datetime, window: timedelta) -> Answer | None:
        """Return the stored answer, or None and hold the key; raise the Refusal of a key misused or still in use."""
        entry = self._entries.get(key)
        if entry is None or (entry.answer is not None and entry.since + window <= now):
            self._entries[key] = _Entry(fingerprint=fingerprint, since=now)
            return None
        if entry.fingerprint != fingerprint:
            raise idempotency_mismatch(key)
        if entry.answer is None:
            raise idempotency_in_use(key)
        return entry.answer

    def keep(self, key: str, answer: Answer) -> None:
        """Store what the request that holds `key` came to."""
        entry = self._entries.get(key)
        if entry is not None:  # a reset in the meantime forgot it
            entry.answer = answer

    def let_go(self, key: str) -> None:
        """Forget a held key whose request was never executed; one that has an answer stays."""
        entry = self._entries.get(key)
        if entry is not None and entry.answer is None:
            del self._entries[key]
