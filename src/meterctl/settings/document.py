"""The configuration file: which one, what it says, and how it is laid over the shipped defaults."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meterctl.settings.problems import Findings, Origins, did_you_mean, kind_of
from meterctl.settings.shipped import SHIPPED, shipped_values

SYSTEM_CONFIG_FILE = Path("/etc/meterctl/config.toml")
"""Read if it exists and neither `-c` nor METERCTL_CONFIG names another file."""

COMMAND_LINE = "command line"
"""How messages name flags as the source of a key."""

_BY_KEY = ("stripe", "webhooks")
"""Tables that a file lays over the shipped ones key by key."""

_TOP_LEVEL = (*_BY_KEY, "lookups", "meters")
_SECRETS_ELSEWHERE = {"database_url": "DATABASE_URL", "database": "DATABASE_URL"}
_TOML_POSITION = re.compile(r"\s*\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


@dataclass(slots=True)
class Document:
    """The tables of the configuration while sources are laid over each other; keys are `stripe.mode` and so on."""

    values: dict[str, Any] = field(default_factory=shipped_values)
    sources: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_TOP_LEVEL, SHIPPED))
    file: Path | None = None

    @property
    def origins(self) -> Origins:
        """Where each key came from, so far."""
        return Origins(self.sources)

    def lay_file(self, source: str, tables: Mapping[str, dict[str, Any]]) -> None:
        """Lay a file over what there is: [stripe] and [webhooks] key by key, all lookups and all meters as a whole."""
        for name, table in tables.items():
            if name in _BY_KEY:
                for key, value in table.items():
                    self.put((name, key), value, source)
            else:
                self.values[name] = table
                self.sources[name] = source

    def put(self, path: tuple[str, ...], value: object, source: str) -> None:
        """Set one key, whatever was there; tables above it are made where they are missing."""
        table = self.values
        for part in path[:-1]:
            below = table.get(part)
            table[part] = table = below if isinstance(below, dict) else {}
        table[path[-1]] = value
        self.sources[".".join(path)] = source


def read_configuration(
    findings: Findings, *, config_file: Path | None, environ: Mapping[str, str], system_file: Path
) -> Document:
    """Return the shipped defaults with the configuration file, if there is one, laid over them."""
    document = Document()
    path, named_by = _choose(config_file, environ, system_file)
    text = _read(findings, path, named_by)
    if text is not None:
        document.file = path
        tables = _parsed(findings, str(path), text)
        document.lay_file(str(path), _sound_tables(findings, str(path), tables))
    return document


def _choose(config_file: Path | None, environ: Mapping[str, str], system_file: Path) -> tuple[Path, str | None]:
    """Return the file, and who named it; None if nobody did, so that it may be missing."""
    if config_file is not None:
        return config_file, "-c"
    if named := environ.get("METERCTL_CONFIG"):
        return Path(named), "METERCTL_CONFIG"
    return system_file, None


def _read(findings: Findings, path: Path, named_by: str | None) -> str | None:
    """Return the file's text, or None where there is none or it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if named_by is not None:
            findings.problem(str(path), f"no such file (named by {named_by}); check the path")
    except UnicodeDecodeError as error:
        findings.problem(str(path), f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        findings.problem(str(path), f"cannot be read ({reason}); make it a file that this user may read")
    return None


def _parsed(findings: Findings, source: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        position = _TOML_POSITION.search(message)
        what = message[: position.start()] if position else message
        where = f"line {position['line']}, column {position['column']}" if position and position["line"] else "its end"
        findings.problem(f"{source}: {where}", f"not valid TOML: {what}; text stands in quotes, tables in [brackets]")
        return {}


def _sound_tables(findings: Findings, source: str, tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tables that meterctl knows; note all else."""
    sound: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        where = f"{source}: {name}"
        if name in _SECRETS_ELSEWHERE:
            findings.problem(where, f"does not belong in a file; set {_SECRETS_ELSEWHERE[name]} in the environment")
        elif name not in _TOP_LEVEL:
            findings.problem(where, f"is not a key{did_you_mean(name, _TOP_LEVEL)}")
        elif not isinstance(table, dict):
            findings.problem(where, f"must be a table, not {kind_of(table)}; write [{_heading(name)}]")
        elif not table and name not in _BY_KEY:
            findings.problem(
                where, f"is empty; write a [{_heading(name)}] table, or leave it out to keep the shipped ones"
            )
        else:
            sound[name] = table
    return sound


def _heading(name: str) -> str:
    return name if name in _BY_KEY else f"{name}.NAME"
