"""The configuration that meterctl is shipped with: a file of the package."""

import tomllib
from importlib.resources import files
from typing import Any

SHIPPED = "shipped defaults"
"""How messages name this source of a key."""


def shipped_text() -> str:
    """Return the shipped configuration as TOML text, comments included."""
    return files("meterctl.settings").joinpath("defaults.toml").read_text(encoding="utf-8")


def shipped_values() -> dict[str, Any]:
    """Return the shipped configuration, parsed anew so that the caller may change it."""
    return tomllib.loads(shipped_text())
