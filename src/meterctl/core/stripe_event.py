"""Stripe's events as meterctl reads them: snapshots (v1), which hold an object, and thin ones (v2), to be fetched."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meterctl.errors import InputError

SNAPSHOT, THIN = "event", "v2.core.event"

DONE = frozenset({"processed", "ignored"})
"""Statuses of stored events that are left alone."""

_NAME = re.compile(r"[!-~]{1,255}")
"""What an id, a type or an account is: visible ASCII, and short enough for an index."""

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""What was created at no instant between these was created at none that every clock can tell."""


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
    for name in ("id", "type"):
        if _name(document.get(name), name) is None:
            raise _no_event(f"it has no {name}")
    if not isinstance(document.get("livemode"), bool):
        raise _no_event("it has no livemode")
    return StripeEvent(
        id=document["id"],
        type=document["type"],
        created=_instant(document.get("created")),
        livemode=document["livemode"],
        payload=_storable(document),
        account=_name(document.get("account"), "account") or _name(document.get("context"), "context"),
        api_version=_name(document.get("api_version"), "api_version"),
    )


def text_in(values: Mapping[str, Any], key: str) -> str | None:
    """Return a text inside an object; None where there is none, or an empty one."""
    found = values.get(key)
    return found if isinstance(found, str) and found else None


def object_in(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object inside another; empty where there is none."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _instant(value: object) -> datetime:
    """Snapshots give Unix seconds, thin events RFC 3339 (OpenAPI, `event` and `v2.core.event`)."""
    try:
        found = _read_instant(value)
    except (ValueError, OverflowError, OSError):
        found = None
    if found is None or not EARLIEST <= found < LATEST:
        raise _no_event("it does not say when it was created")
    return found


def _read_instant(value: object) -> datetime | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    parsed = datetime.fromisoformat(value) if isinstance(value, str) else None
    return parsed.astimezone(UTC) if parsed is not None and parsed.tzinfo is not None else None


def _name(value: object, called: str) -> str | None:
    """Return a name, None where there is none. One that cannot be is none of Stripe's, and not taken for a lack."""
    if not isinstance(value, str) or not value:
        return None
    if _NAME.fullmatch(value) is None:
        raise _no_event(f"its {called} is none")
    return value


def _storable(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document as PostgreSQL's jsonb can hold it. Raises InputError where it cannot hold it at all."""
    try:
        cleaned = {name: _clean(value) for name, value in document.items()}
        json.dumps(cleaned, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise _no_event(f"it cannot be stored: {error}") from error
    return cleaned


def _clean(value: object) -> object:
    """Return it without NUL characters and halves of characters."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(_clean(key)): _clean(inner) for key, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _no_event(what: str) -> InputError:
    return InputError(f"this is no event of Stripe's: {what}", hint="give the whole JSON document that Stripe sent")
