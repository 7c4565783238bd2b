"""SQL lives in `sql/*.sql` and is asked for by name: `query("ledger", "claim")`.

A file holds statements headed by `-- name: NAME`; the comment lines that follow the head are their documentation
and are dropped, because psycopg reads `%` inside SQL comments as well.
"""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString

_HEAD = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--[^\n]*\n", re.MULTILINE)
_TRAILING_COMMENT = re.compile(r"\s+--[^\n']*$", re.MULTILINE)


def query(file: str, name: str) -> LiteralString:
    """Return the statement `name` of `sql/{file}.sql`. Raises KeyError if there is none."""
    return _statements(file)[name]


@cache
def _statements(file: str) -> dict[str, LiteralString]:
    text = files(__package__).joinpath("sql", f"{file}.sql").read_text(encoding="utf-8")
    pieces = _HEAD.split(text)[1:]
    return {name: _bare(body) for name, body in zip(pieces[::2], pieces[1::2], strict=True)}


def _bare(body: str) -> LiteralString:  # our own package's text, never a user's
    return _TRAILING_COMMENT.sub("", _COMMENT.sub("", body)).strip().rstrip(";")
