"""What README.md, docs/ and deploy/ name: commands with their options, settings, links.

A command is what stands in a code span after `meterctl`, or begins with the name of a command; what a line of a console
block runs; and what cron and systemd run.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from meterctl.cli.app import app

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_SEPARATORS = {"|", "||", "&&", ";", ">", "2>"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """A use of the command, without the command itself; `where` is file, line and text for a person."""

    where: str
    words: tuple[str, ...]

    def fault(self) -> str | None:
        """Return what of it does not exist, or None."""
        command: TyperCommand | TyperGroup = _root()
        rest = list(self.words)
        while rest:
            word = rest.pop(0)
            if word.startswith("-") and len(word) > 1:
                option = _options(command).get(word.partition("=")[0])
                if option is None:
                    return f"no option {word.partition('=')[0]}"
                takes_word = not option.is_flag and "=" not in word
                rest = rest[1:] if takes_word else rest
            elif isinstance(command, TyperGroup) and re.match(r"[a-z]", word):
                if word not in command.commands:
                    return f"no command {word}"
                command = _inner(command, word)
        return None


def documents(root: Path) -> list[Path]:
    """Return the files that people read to run the command."""
    deploy = [path for path in sorted((root / "deploy").rglob("*")) if path.is_file()]
    return [root / "README.md", *sorted((root / "docs").glob("*.md")), *deploy]


def commands_in(page: Path) -> list[Invocation]:
    """Return the uses of the command in a document."""
    text = page.read_text(encoding="utf-8")
    found = [*_in_spans(page, text)]
    lines = text.splitlines() if page.suffix != ".md" else [line for _, line in _console_lines(text)]
    for line in lines:
        words = _run_by(line)
        if words is not None:
            found.append(Invocation(where=f"{page.name}: {line.strip()[:70]}", words=words))
    return found


def code_spans(page: Path) -> list[str]:
    """Return the code within a document's sentences and tables; blocks are left out."""
    return _spans(_FENCE.sub("", page.read_text(encoding="utf-8")))


def toml_blocks(page: Path) -> list[str]:
    """Return the blocks of configuration in a document."""
    return [body for kind, body in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == "toml"]


def headings(page: Path) -> set[str]:
    """Return the fragments that links to a Markdown page can name, as GitHub makes them of its headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands() -> list[str]:
    """Return the names of all commands, as they are typed after `meterctl`."""
    return [name for name, command in _walk(_root(), ()) if not isinstance(command, TyperGroup)]


def options() -> set[str]:
    """Return the options of all commands, with those that every command has."""
    return {"--help", "-h"}.union(*(_options(command) for _, command in _walk(_root(), ())))


@cache
def _root() -> TyperGroup:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return root


def _walk(command: TyperCommand | TyperGroup, path: tuple[str, ...]) -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    yield " ".join(path), command
    if isinstance(command, TyperGroup):
        for name in command.commands:
            yield from _walk(_inner(command, name), (*path, name))


def _inner(group: TyperGroup, name: str) -> TyperCommand | TyperGroup:
    command = group.commands[name]
    assert isinstance(command, TyperCommand | TyperGroup)
    return command


def _options(command: TyperCommand | TyperGroup) -> dict[str, TyperOption]:
    found = [parameter for parameter in command.params if isinstance(parameter, TyperOption)]
    return {name: option for option in found for name in (*option.opts, *option.secondary_opts)}


def _spans(text: str) -> list[str]:
    return [" ".join(span.split()) for span in _SPAN.findall(text)]


def _in_spans(page: Path, text: str) -> Iterator[Invocation]:
    """Code spans, those in comments and in blocks of output too. A lone word such as `report` names no options."""
    prose = text if page.suffix != ".md" else re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    for span in _spans(prose):
        words = _split(span)
        if words and (words[0] == "meterctl" or words[0] in _root().commands):
            given = words[1:] if words[0] == "meterctl" else words
            yield Invocation(where=f"{page.name}: {span[:70]}", words=_until_separator(given))


def _console_lines(text: str) -> Iterator[tuple[str, str]]:
    for kind, body in _FENCE.findall(text):
        for line in body.replace("\\\n", " ").splitlines():
            if kind == "console" and re.match(r"[$#] ", line):
                yield kind, line[2:]
            elif kind == "" and "/bin/meterctl" in line:
                yield kind, line


def _run_by(line: str) -> tuple[str, ...] | None:
    """Given a line of a shell, of cron or of a unit, return what it gives to the command, None if that is not run."""
    if line.lstrip().startswith(("#", ";")):
        return None
    words = _split(line)
    for position, word in enumerate(words):
        runs = word.endswith("/bin/meterctl") or (position == 0 and word == "meterctl")
        if runs and not word.startswith("-"):
            return _until_separator(words[position + 1 :])
    return None


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text.replace("; ", " ; "), comments=True)
    except ValueError:  # an apostrophe of a sentence
        return []


def _until_separator(words: list[str]) -> tuple[str, ...]:
    end = next((n for n, word in enumerate(words) if word in _SEPARATORS), len(words))
    return tuple(words[:end])
