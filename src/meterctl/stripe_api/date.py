"""Stripe's clock, as its answers tell it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache


def answered_at(headers: Mapping[str, str] | None) -> datetime | None:
    """Return the answer's `Date`, aware UTC, in whole seconds, or None where it is missing or malformed."""
    text = (headers or {}).get("Date")  # the client's headers heed no case
    return None if text is None else _instant(text)


@lru_cache(maxsize=8)  # it changes once a second, answers come by the hundred
def _instant(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None
