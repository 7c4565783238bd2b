"""Masking secrets in whatever is shown to anybody: log lines, tracebacks, reports."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from math import isfinite
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

_SHORT = 9
"""Secrets with fewer characters are masked as whole words only: masking every "a" would leave nothing to read."""

_DEPTH_MAX = 8
"""How deep values are looked into; what lies deeper is shown as text."""

_SHAPES = (
    (re.compile(r"(?<![A-Za-z0-9])(?:sk|rk)_(?:test|live)_[A-Za-z0-9_*]+"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])whsec_[A-Za-z0-9_*+/=]+"), MASK),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\"'<>]*:)[^\s\"'<>\\]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|[^\s\"'&,;{}\\]+)", re.IGNORECASE), rf"\1{MASK}"),
)
"""What a secret looks like, whose it may be: Stripe's keys and signing secrets, passwords in URLs and `key=value`."""


class Redactor:
    """Masks the given secrets in every form they may take, and everything that looks like a secret."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret.strip() for form in _forms(secret.strip())}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._secrets = re.compile("|".join(map(_pattern, longest_first))) if forms else None

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, text: str) -> str:
        """Return the text with every secret replaced by ***."""
        if self._secrets is not None:
            text = self._secrets.sub(MASK, text)
        for shape, masked in _SHAPES:
            text = shape.sub(masked, text)
        return text

    def value(self, value: object, *, depth: int = 0) -> Any:  # noqa: ANN401 -- JSON: any of its types
        """Return a value as JSON knows it, secrets masked in all its texts and keys."""
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if isfinite(value) else str(value)
        if isinstance(value, str):
            return self.text(str(value))
        if isinstance(value, Mapping) and depth < _DEPTH_MAX:
            return {self.text(str(key)): self.value(each, depth=depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset) and depth < _DEPTH_MAX:
            return [self.value(each, depth=depth + 1) for each in value]
        return self.text(_shown(value))


def _shown(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, Decimal | BaseException):
        return str(value)
    return repr(value)


def _forms(secret: str) -> set[str]:
    """Given a secret, return it as URLs, JSON and Python would write it, too."""
    plain = {secret, unquote(secret)}
    encodings = ((quote, "/"), (quote, ""), (quote_plus, ""))
    encoded = {encode(form, safe, errors="surrogateescape") for form in plain for encode, safe in encodings}
    encoded |= {re.sub(r"%[0-9A-F]{2}", lambda escape: escape[0].lower(), form) for form in encoded}
    escaped = {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in plain for ascii_only in (True, False)}
    return plain | encoded | escaped | {repr(form)[1:-1] for form in plain}


def _pattern(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _SHORT else rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"
