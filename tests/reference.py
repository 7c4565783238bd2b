"""The tables of docs/configuration.md, from the schema of the settings: `./dev docs` writes them, a test compares."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from meterctl.settings.load import RENAMED_METER, VARIABLES
from meterctl.settings.meters import METER_KINDS, Meter
from meterctl.settings.model import LookupSettings, PayerSettings, Section, StripeSettings, environment_fields
from meterctl.settings.toml_text import literal
from meterctl.settings.webhooks import SubscriptionsSettings, WebhookSettings

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

_PART = re.compile(r"(?<=<!-- made by \./dev docs: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)

OTHER_VARIABLES = {
    "DATABASE_URL": "The database: a libpq URL, or libpq's `key=value` form. Default: libpq's variables, `PGHOST`, ….",
    "METERCTL_CONFIG": "The configuration file, unless `-c` names one.",
    "STRIPE_METER_EVENT_NAME": f"The event_name of `[meters.{RENAMED_METER}]`, unless the file gives one.",
}
"""Variables that are no key of a section."""


def keys(kind: type[Section], *, without: Iterable[str] = ()) -> str:
    """Return the keys that a file may hold in such a section."""
    left_out = {*environment_fields(kind), *without}
    fields = {name: field for name, field in kind.model_fields.items() if name not in left_out}
    rows = [(f"`{name}`", _default(name, field), _meaning(field)) for name, field in fields.items()]
    return _table(("key", "default", "meaning"), rows)


def variables() -> str:
    """Return the variables that are read, but for libpq's own."""
    fields = {
        variable: StripeSettings.model_fields[name].description or ""
        for name, variable in environment_fields(StripeSettings).items()
    }
    known: Mapping[str, str] = OTHER_VARIABLES | fields
    return _table(("variable", "meaning"), [(f"`{name}`", known[name]) for name in sorted({*known, *VARIABLES})])


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "the key" if name == "event_name" else "required"
    value = field.get_default(call_default_factory=True)
    return f"`{literal(value)}`" if value or value is False else ""


def _meaning(field: FieldInfo) -> str:
    choices, word = field.annotation, "One"
    if get_origin(choices) is tuple:
        choices, word = get_args(choices)[0], "Any"
    listed = [f"`{literal(choice)}`" for choice in get_args(choices)] if get_origin(choices) is Literal else []
    return f"{field.description} {word} of {', '.join(listed)}." if len(listed) > 1 else f"{field.description}"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


PARTS: Mapping[str, Callable[[], str]] = {
    "stripe": lambda: keys(StripeSettings),
    "lookups": lambda: keys(LookupSettings),
    "payers": lambda: keys(PayerSettings),
    "meters": lambda: keys(Meter),
    **{
        source: (lambda kind=kind: keys(kind, without=Meter.model_fields))  # type: ignore[misc] # binds each kind
        for source, kind in METER_KINDS.items()
    },
    "webhooks": lambda: keys(WebhookSettings, without=["subscriptions"]),
    "subscriptions": lambda: keys(SubscriptionsSettings),
    "environment": variables,
}


def written(text: str) -> str:
    """Given the page, return it with its tables made anew."""
    return _PART.sub(lambda part: f"{part[1]}{part[2]}\n{PARTS[part[1]]()}\n", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
