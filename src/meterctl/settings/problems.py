"""Where a key of the configuration came from, and what is wrong with it, in one line a person can act on."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from meterctl.settings.model import Section, environment_fields
from meterctl.settings.shipped import SHIPPED

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

ENVIRONMENT = "environment "
CREDENTIAL = "systemd credential "
"""Sources that begin so name one thing, which says it all: no key follows."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LAST_PART = re.compile(r"(?:\.?[^.\[]+|\[[0-9]+\])$")

Path = tuple[str | int, ...]
_Renderer = Callable[["ErrorDetails"], str]


def dotted(path: Iterable[str | int]) -> str:
    """Given a path, return it as TOML writes keys: `meters."a b".payers[0].column`, positions counted from 0."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        name = part if _BARE_KEY.fullmatch(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
        text += f".{name}" if text else name
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Given a word and those that would do, return "; did you mean `x`?", or "; known: …" when none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1) or difflib.get_close_matches(word.lower(), words, n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known: {', '.join(words)}" if words else ""


@dataclass(frozen=True, slots=True)
class Origins:
    """Which source each key came from; what is not listed came from the nearest listed key above it."""

    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Given a dotted key, return which source it came from: a file, `environment NAME`, the shipped defaults."""
        above = key
        while above and above not in self.sources:
            above = _LAST_PART.sub("", above)
        return self.sources.get(above, SHIPPED)

    def where(self, key: str) -> str:
        """Given a dotted key, return where a person finds it: `FILE: key`, or `environment NAME`."""
        source = self.source(key)
        return source if source.startswith((ENVIRONMENT, CREDENTIAL)) else f"{source}: {key}"


@dataclass(slots=True)
class Findings:
    """All that is wrong, and all that is merely odd, gathered over the whole of the configuration."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, where: str, what: str) -> None:
        """Note a reason not to run. `what` says what is wrong and, after a semicolon, what to do."""
        self.problems.append(f"{where}: {what}")

    def warning(self, where: str, what: str) -> None:
        """Note something that looks like a mistake but is harmless."""
        self.warnings.append(f"{where}: {what}")


def explained(error: "ValidationError", kind: type[Section]) -> list[tuple[Path, str]]:
    """Given what pydantic found in a section, return (path inside it, what is wrong) for each."""
    found = error.errors(include_url=False)
    return [(details["loc"], _what(details, kind)) for details in found if not _only_an_echo(details)]


def _only_an_echo(details: "ErrorDetails") -> bool:
    """Whether a list counts as too short only since its entries are at fault, which is said of each."""
    return details["type"] == "too_short" and bool(details["input"])


def _what(details: "ErrorDetails", kind: type[Section]) -> str:
    path = details["loc"]
    if details["type"] == "extra_forbidden":
        return _unknown_key(str(path[-1]), _section_at(path[:-1], kind))
    if details["type"] == "missing":
        return f"is missing; {_description(path, kind)}"
    if details["type"] == "literal_error":
        return _not_one_of(details)
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return _MESSAGES.get(details["type"], _other)(details)


def _unknown_key(key: str, kind: type[Section]) -> str:
    reason = kind.refused_keys().get(key)
    if reason is not None:
        return reason
    return f"is not a key{did_you_mean(key, kind.model_fields.keys() - environment_fields(kind).keys())}"


def _description(path: Path, kind: type[Section]) -> str:
    fields = _section_at(path[:-1], kind).model_fields
    return (fields[str(path[-1])].description or "").rstrip(".")


def _section_at(path: Path, kind: type[Section]) -> type[Section]:
    """Return the section that stands at a path inside another: for `payers[0]` that of a payer."""
    for part in path:
        if isinstance(part, str):
            kind = next(_sections_in(kind.model_fields[part].annotation))
    return kind


def _sections_in(annotation: object) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _not_one_of(details: "ErrorDetails") -> str:
    expected = str(details["ctx"]["expected"]).replace("'", '"')
    near = difflib.get_close_matches(str(details["input"]).lower(), re.findall(r'"([^"]*)"', expected), n=1)
    hint = f'; did you mean "{near[0]}"?' if near else "; write it so, in quotes"
    return f"must be {expected}{hint}"


def _wrong_type(expected: str) -> _Renderer:
    return lambda details: f"must be {expected}, not {kind_of(details['input'])}"


def _bound(word: str, key: str) -> _Renderer:
    return lambda details: f"must be at {word} {details['ctx'][key]}; choose another number"


def _other(details: "ErrorDetails") -> str:
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}"


_NO_INSTANT = "is not an instant; write it like 2026-12-01T00:00:00Z"

_MESSAGES: Mapping[str, _Renderer] = {
    "string_type": _wrong_type("text in quotes"),
    "bool_type": _wrong_type("true or false, without quotes"),
    "int_type": _wrong_type("a whole number, without quotes"),
    "list_type": _wrong_type("a list in brackets"),
    "tuple_type": _wrong_type("a list in brackets"),
    "dict_type": _wrong_type("a table of keys"),
    "model_type": _wrong_type("a table of keys"),
    "model_attributes_type": _wrong_type("a table of keys"),
    "greater_than_equal": _bound("least", "ge"),
    "less_than_equal": _bound("most", "le"),
    "too_short": lambda _: "is empty; name at least one { lookup, column }",
    "timezone_aware": lambda _: "has no time zone; write it like 2026-12-01T00:00:00Z",
    "datetime_parsing": lambda _: _NO_INSTANT,
    "datetime_from_date_parsing": lambda _: _NO_INSTANT,
}


def kind_of(value: object) -> str:
    """Given a value from TOML, return its type in words; the value itself may be secret."""
    return _KINDS.get(type(value), "a date or time")


_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    str: "text",
    list: "a list",
    dict: "a table",
    type(None): "nothing",
}
