"""Options that mean the same everywhere, and how they are read."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from meterctl.errors import UsageError

DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Show what would be done; write and send nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing when all is well.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log more on stderr.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colour on a terminal.")]
Live = Annotated[bool, typer.Option("--live", help='Mean live mode, as `stripe.mode = "live"` does.')]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do it without asking.")]
Confirm = Annotated[
    str | None, typer.Option("--confirm", help="With --yes in live mode: the account's id.", metavar="ACCOUNT")
]
Meters = Annotated[list[str] | None, typer.Option("--meter", help="Only this meter; may be repeated.", metavar="NAME")]

_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """Given `90s`, `15m`, `3h` or `2d`, return the span. Raises UsageError for anything else."""
    if text == "0":
        return timedelta(0)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no duration", hint="write it like 90s, 15m, 3h or 2d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def instant(text: str) -> datetime:
    """Given an instant in ISO 8601 with its zone (a date means 00:00 UTC), return it in UTC. Raises UsageError."""
    try:
        parsed = datetime.fromisoformat(text)
        in_utc = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):  # the year 1 begins earlier in the east
        raise UsageError(f"{text!r} is no instant", hint="write it like 2026-12-01T00:00:00Z") from None
    if parsed.tzinfo is None and len(text) > len("2026-12-01"):
        raise UsageError(f"{text!r} names no time zone", hint="write it like 2026-12-01T00:00:00Z")
    return in_utc
