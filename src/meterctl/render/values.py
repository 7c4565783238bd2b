"""How single values are written: instants, spans, units."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from meterctl.core.value import formatted


def iso(instant: datetime | None) -> str | None:
    """Return the instant in ISO 8601, UTC, whole seconds, with Z."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if instant else None


def shown(value: object) -> str:
    """Return a value as a table shows it: on one line, without control characters; "-" for none."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return iso(value) or "-"
    if isinstance(value, Decimal):
        return formatted(value)
    return printable(str(value))


def printable(text: str) -> str:
    """Return text of the application's (ids, subjects) so that it cannot steer a terminal or break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def jsonable(value: object) -> object:
    """Return a value as our JSON documents hold it: quantities and instants are strings."""
    if isinstance(value, datetime | Decimal):
        return shown(value)
    return value


def span(length: timedelta) -> str:
    """Return a length of time in its largest fitting unit: 45s, 12m, 5h, 3d."""
    seconds = int(length.total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
