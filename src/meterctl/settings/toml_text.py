"""Values as a configuration file writes them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from meterctl.settings.problems import dotted

_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}


def literal(value: object) -> str:
    """Given a setting's value, return it in TOML, on one line and without control characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return _span(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{dotted([key])} = {literal(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def _span(span: timedelta) -> str:
    """Return a length of time as the settings read it, in the largest unit that it is a whole number of."""
    unit = next(unit for unit, size in _UNITS.items() if not span % size)
    return f'"{span // _UNITS[unit]}{unit}"'
