"""Identifiers: the only handle Stripe keeps on a meter event, so they are made from stored facts alone.

An identifier is a template of columns (`{workspace_id}-{user_id}-{id}`). Stripe takes at most 100 characters
(OpenAPI, `MeterEventCreateParams.identifier`); five stay free for the suffix of a retried event (`~2`).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

IDENTIFIER_LENGTH_MAX = 95
"""Longest identifier a template may give as it is; longer ones become a readable prefix and a hash."""

HASHED_PREFIX_LENGTH = 30
"""Characters kept readable in a hashed identifier: 30 + "-" + 64 hex digits = 95."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_SUFFIX = re.compile(r"^(?P<base>.*)~(?P<number>[0-9]{1,4})$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Column:
    """A placeholder of a template: the value of this column, as text."""

    name: str


Template = tuple[str | Column, ...]


def parse_template(text: str) -> Template:
    """Given `{a}-{b}`, return its literal texts and columns in order. Raises ValueError saying what is wrong."""
    parts: list[str | Column] = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        parts += _literal(text[position : match.start()])
        parts.append(_column(match[1]))
        position = match.end()
    parts += _literal(text[position:])
    if not any(isinstance(part, Column) for part in parts):
        raise ValueError("an identifier template needs at least one {column}")
    return tuple(parts)


def _literal(text: str) -> list[str]:
    if "{" in text or "}" in text:
        raise ValueError("a brace without its partner: write columns as {column}")
    return [text] if text else []


def _column(name: str) -> Column:
    if not name.strip():
        raise ValueError("empty braces: write a column's name between them")
    return Column(name)


def shortened(text: str) -> str:
    """Given a template's text, return it as an identifier of at most 95 characters. SQL does the same in `rows.sql`."""
    if len(text) <= IDENTIFIER_LENGTH_MAX:
        return text
    return f"{text[:HASHED_PREFIX_LENGTH]}-{hashlib.sha256(text.encode()).hexdigest()}"


def next_identifier(identifier: str) -> str:
    """Given the identifier of a rejected event, return the one it is issued again under: `x` → `x~2` → `x~3`."""
    match = _SUFFIX.match(identifier)
    if match is None:
        return f"{identifier}~2"
    return f"{match['base']}~{int(match['number']) + 1}"


def may_collide(one: Template, other: Template) -> bool:
    """Whether two templates can give the same text, if columns hold no separator that stands in a template.

    Columns that do hold one (a UUID beside `-`) can still collide; the ledger's UNIQUE identifier then rejects the
    second row alone, as `local:identifier_collision`.
    """
    left, right = _symbols(one), _symbols(other)
    separators = {s for s in (*left, *right) if s is not None and not s.isalnum()}
    return _can_meet(left, right, separators)


def _symbols(template: Template) -> list[str | None]:
    """Characters of the literals; None stands for a column."""
    symbols: list[str | None] = []
    for part in template:
        symbols += [None] if isinstance(part, Column) else list(part)
    return symbols


def _can_meet(left: Sequence[str | None], right: Sequence[str | None], separators: set[str]) -> bool:
    """Whether some text matches both, a column standing for any run of characters that are no separators."""
    reached = {(0, 0)}
    for i, j in product(range(len(left) + 1), range(len(right) + 1)):
        if (i, j) not in reached:
            continue
        a = left[i] if i < len(left) else ""
        b = right[j] if j < len(right) else ""
        if a is None:
            reached.add((i + 1, j))
            reached |= {(i, j + 1)} if b and b not in separators else set()
        if b is None:
            reached.add((i, j + 1))
            reached |= {(i + 1, j)} if a and a not in separators else set()
        if a and a == b:
            reached.add((i + 1, j + 1))
    return (len(left), len(right)) in reached
