"""Stripe's events as meterctl reads them: snapshots (v1), which hold an object, and thin ones (v2), to be fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meterctl.errors import InputError

SNAPSHOT, THIN = "event", "v2.core.event"


@dataclass(frozen=True, kw_only=True, slots=True)
class StripeEvent:
    """One event. `created` is aware UTC, of a snapshot in whole seconds. `account`: whose it is, where it says so."""

    id: str
    type: str
    created: datetime
    livemode: bool
    payload: Mapping[str, Any]
    account: str | None = None
    api_version: str | None = None

    @property
    def is_thin(self) -> bool:
        """Whether its data are to be fetched."""
        return self.payload.get("object") == THIN

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to be fetched."""
        return not self.is_thin or isinstance(self.payload.get("data"), Mapping)


def read_event(document: object) -> StripeEvent:
    """Given an event as JSON, return it. Raises InputError naming what is missing."""
    if not isinstance(document, Mapping) or document.get("object") not in (SNAPSHOT, THIN):
        raise _no_event(f'it is no object of the kind "{SNAPSHOT}" or "{THIN}"')
    for name, kind in (("id", str), ("type", str), ("livemode", bool)):
        if not isinstance(document.get(name), kind) or document[name] == "":
            raise _no_event(f"it has no {name}")
    return StripeEvent(
        id=document["id"],
        type=document["type"],
        created=_instant(document.get("created")),
        livemode=document["livemode"],
        payload=document,
        account=_text(document.get("account")) or _text(document.get("context")),
        api_version=_text(document.get("api_version")),
    )


def _instant(value: object) -> datetime:
    """Snapshots give Unix seconds, thin events RFC 3339 (OpenAPI, `event` and `v2.core.event`)."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise _no_event("it does not say when it was created")
    return parsed.astimezone(UTC)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _no_event(what: str) -> InputError:
    return InputError(f"this is no event of Stripe's: {what}", hint="give the whole JSON document that Stripe sent")
