"""Names and amounts as configuration files write them. Checks say what to write instead; they never show the value."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

NAME_BYTES_MAX = 63
"""Longest name PostgreSQL keeps (NAMEDATALEN - 1); it silently cuts longer ones."""

EVENT_NAME_LENGTH_MAX = 100
"""Longest `event_name` (Stripe's OpenAPI, `MeterEventCreateParams.event_name`)."""

PAYLOAD_KEY_LENGTH_MAX = 100
"""Longest payload key a meter can name (Stripe's OpenAPI, `value_settings.event_payload_key`)."""

_DAY = timedelta(days=1)
_ZONE = re.compile(r"UTC|[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+")
"""Not `CET` or `UTC+1`: PostgreSQL takes those for fixed offsets, the latter with its sign reversed (docs, B.5)."""

_STEP = re.compile(r"([1-9][0-9]{0,3})(m|h|d)")
_STEP_UNITS: Mapping[str, timedelta] = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": _DAY}


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; name a column")
    if len(text.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"is longer than the {NAME_BYTES_MAX} bytes PostgreSQL keeps of a name; use the name in full")
    if "\0" in text:
        raise ValueError("holds a NUL character, which no name in PostgreSQL can; remove it")
    return text


def _table(text: str) -> str:
    if not text.strip():
        raise ValueError('is empty; name a table, as "table" or "schema.table"')
    if '"' in text:
        raise ValueError("holds quotation marks; write the bare name, meterctl quotes it (capital letters count)")
    parts = text.split(".")
    if len(parts) > 2 or not all(part.strip() for part in parts):  # noqa: PLR2004 -- schema and table make two
        raise ValueError('is not "table" or "schema.table"; for a name with dots make a view')
    for part in parts:
        _name(part)
    return text


def _event_name(text: str) -> str:
    if not text or text != text.strip():
        raise ValueError("is empty or begins or ends with a space; write the event_name exactly as in Stripe")
    if len(text) > EVENT_NAME_LENGTH_MAX:
        raise ValueError(
            f"is longer than the {EVENT_NAME_LENGTH_MAX} characters Stripe allows; shorten it in Stripe too"
        )
    if not text.isprintable():
        raise ValueError("holds a control character; write the event_name exactly as in Stripe")
    return text


def _condition(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; leave the key out to bill every row")
    return text


def payload_key(text: str) -> str:
    """Return a key of an event's payload as it is. Raises ValueError if Stripe could not take it."""
    if not text.strip():
        raise ValueError("is empty; leave the key out to use Stripe's default")
    if len(text) > PAYLOAD_KEY_LENGTH_MAX:
        raise ValueError(f"is longer than the {PAYLOAD_KEY_LENGTH_MAX} characters Stripe allows; shorten it")
    if "[" in text or "]" in text:
        raise ValueError("holds a bracket, at which Stripe would take it apart; choose another name")
    return text


def _time_zone(text: str) -> str:
    if not _ZONE.fullmatch(text):
        raise ValueError('is not the full name of a time zone; write it like "Europe/Berlin", or "UTC"')
    return text


def _account(text: str) -> str:
    if not re.fullmatch(r"acct_[A-Za-z0-9]+", text):
        raise ValueError('is not an account id; they look like "acct_1Nv0FG" (Dashboard, Settings, Account details)')
    return text


def _step(given: object) -> object:
    if isinstance(given, timedelta):
        return given
    match = _STEP.fullmatch(given) if isinstance(given, str) else None
    step = int(match[1]) * _STEP_UNITS[match[2]] if match else timedelta()
    if not step or _DAY % step:
        raise ValueError('is not a step that divides a day; write it like "15m", "1h" or "1d"')
    return step


def _span(given: object) -> object:
    if isinstance(given, timedelta):
        return given
    match = _STEP.fullmatch(given) if isinstance(given, str) else None
    if not match:
        raise ValueError('is not a length of time; write it like "30m", "12h" or "7d"')
    return int(match[1]) * _STEP_UNITS[match[2]]


def _moment(given: object) -> object:
    if not isinstance(given, (str, datetime)):
        raise ValueError("is not an instant; write it like 2026-12-01T00:00:00Z")  # noqa: TRY004 -- pydantic reports ValueErrors only
    return given


ColumnName = Annotated[str, AfterValidator(_name)]
"""A column, verbatim: capital letters count, since it is quoted in SQL."""

TableName = Annotated[str, AfterValidator(_table)]
"""`table` or `schema.table`, verbatim."""

EventName = Annotated[str, AfterValidator(_event_name)]
Condition = Annotated[str, AfterValidator(_condition)]
PayloadKey = Annotated[str, AfterValidator(payload_key)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
AccountId = Annotated[str, AfterValidator(_account)]

Step = Annotated[timedelta, BeforeValidator(_step)]
"""A length of time that divides a day, written `15m`, `1h`, `1d`."""

Span = Annotated[timedelta, BeforeValidator(_span)]
"""A length of time, written `30m`, `12h`, `7d`."""

Instant = Annotated[
    AwareDatetime,
    Field(strict=False),
    BeforeValidator(_moment),
    AfterValidator(lambda instant: instant.astimezone(UTC)),
]
"""An instant with a time zone, as a TOML date-time or as text in RFC 3339; kept in UTC."""
