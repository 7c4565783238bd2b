"""The configuration as it is in force, key by key, with where each value came from. Secrets are only said to be set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

from pydantic import SecretStr

from meterctl.settings.load import Settings
from meterctl.settings.model import Section, environment_fields
from meterctl.settings.problems import ENVIRONMENT, Path, dotted
from meterctl.settings.toml_text import literal

DEFAULT = "default"
"""The source of a value that nobody gave."""

COMMENTS_FROM = 46
"""Where comments begin, but for lines that are longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One key. `value` is as a file would hold it, None where there is none; a secret's is not shown.

    `in_file`: whether a file may hold the key; what only the environment gives may not.
    """

    section: str
    name: str
    value: object
    source: str
    in_file: bool = True
    secret: bool = False

    @property
    def key(self) -> str:
        """The key in full: `stripe.mode`."""
        return dotted([self.name]) if not self.section else f"{self.section}.{dotted([self.name])}"

    @property
    def shown(self) -> str:
        """The value in TOML, or what may be said of it."""
        if self.secret:
            return str(self.plain)
        return "not set" if self.value is None else literal(self.value)

    @property
    def plain(self) -> object:
        """The value as JSON holds it, or what may be said of it."""
        if self.secret:
            return "set" if self.value else "not set"
        return literal(self.value).strip('"') if isinstance(self.value, datetime | timedelta) else self.value


def entries(settings: Settings) -> list[Entry]:
    """Return every key of the configuration, in the order of the reference."""
    return [
        *_database(settings),
        *_section(settings, ("stripe",), settings.stripe),
        *(one for name, lookup in settings.lookups.items() for one in _section(settings, ("lookups", name), lookup)),
        *(one for key, meter in settings.meters.items() for one in _section(settings, ("meters", key), meter)),
        *_webhooks(settings),
    ]


def as_toml(found: Iterable[Entry]) -> str:
    """Return entries as a configuration file of the same meaning, sources in comments; so is what no file may hold."""
    lines: list[str] = []
    section = ""
    for one in found:
        if one.section != section:
            section = one.section
            lines += ["", f"[{section}]"]
        is_key = one.in_file and one.value is not None
        text = f"{dotted([one.name])} = {one.shown}" if is_key else f"# {one.name}: {one.shown}"
        lines.append(f"{text:<{COMMENTS_FROM}}  # {one.source}")
    return "\n".join(lines)


def _database(settings: Settings) -> Iterator[Entry]:
    url, password = settings.database_url.get_secret_value(), settings.database_password
    source = settings.origins.source("database_url")
    yield Entry(section="", name="database_url", value=bool(url), source=source, in_file=False, secret=True)
    source = f"{ENVIRONMENT}PGPASSWORD"
    yield Entry(section="", name="database_password", value=bool(password), source=source, in_file=False, secret=True)


def _webhooks(settings: Settings) -> Iterator[Entry]:
    webhooks = settings.webhooks
    yield from (one for one in _section(settings, ("webhooks",), webhooks) if one.name != "subscriptions")
    if webhooks.subscriptions is not None:
        yield from _section(settings, ("webhooks", "subscriptions"), webhooks.subscriptions)


def _section(settings: Settings, path: Path, section: Section) -> Iterator[Entry]:
    kind = type(section)
    outside = environment_fields(kind)
    for name, field in kind.model_fields.items():
        value, secret = getattr(section, name), SecretStr in get_args(field.annotation)
        yield Entry(
            section=dotted(path),
            name=name,
            value=bool(value) if secret else _plain(value),
            source=_source(settings, path, section, name),
            in_file=name not in outside,
            secret=secret,
        )


def _source(settings: Settings, path: Path, section: Section, name: str) -> str:
    variable = environment_fields(type(section)).get(name)
    if variable is not None and not getattr(section, name):
        return f"{ENVIRONMENT}{variable}"
    by_key = name == "event_name" and section.model_dump()[name] == path[-1]
    given = name in section.model_fields_set and not by_key
    return settings.origins.source(dotted((*path, name))) if given else DEFAULT


def _plain(value: object) -> object:
    """Return a value without models in it."""
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value.model_dump() if isinstance(value, Section) else value
