"""Form bodies and queries: bracketed keys to nested parameters, checked against a declared shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from meterctl.sandbox.local_stripe.errors import Refusal, invalid, missing_param, unknown_param

Params = dict[str, "str | Params"]

INTEGER_LENGTH_MAX = 20
"""Characters of a 64-bit integer with its sign."""


def parse(text: str) -> Params:
    """Given `a=1&b[c]=2`, return `{"a": "1", "b": {"c": "2"}}`; raise Refusal where keys contradict each other."""
    params: Params = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        if "[" in key:
            _nest(params, key, value)
        else:
            params[key] = value
    return params


def _nest(params: Params, key: str, value: str) -> None:
    head, *rest = key.replace("]", "").split("[")
    level = params
    for name in [head, *rest][:-1]:
        inner = level.setdefault(name, {})
        if not isinstance(inner, dict):
            raise invalid(f"Invalid object: {name}", param=name)
        level = inner
    # `expand[]` repeats one empty key: number the items, order is all that matters
    level[rest[-1] or str(len(level))] = value


def unparse(params: Params) -> str:
    """Return the query that `parse` reads as `params`."""
    return urlencode(list(_flat(params)))


def _flat(params: Params, inside: str = "") -> Iterator[tuple[str, str]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _flat(value, _full(inside, name))
        else:
            yield _full(inside, name), value


@dataclass(frozen=True, kw_only=True, slots=True)
class Param:
    """What one parameter may be. `length_max` counts characters, of a map's values too; `items_max` a list's items."""

    kind: Literal["string", "integer", "range", "hash", "map", "list"] = "string"
    required: bool = False
    length_max: int = 5000
    items_max: int | None = None
    choices: tuple[str, ...] = ()
    fields: Mapping[str, "Param"] = field(default_factory=dict)


Shape = Mapping[str, Param]

EXPAND = Param(kind="list")
"""Every call takes `expand`; there is nothing to expand here."""


_RANGE: Shape = {name: Param(kind="integer") for name in ("gt", "gte", "lt", "lte")}
"""What a range is where it is not one integer."""


def check(params: Params, shape: Shape, *, inside: str = "") -> None:
    """Raise the Refusal that Stripe's parameter validation would, before anything is executed."""
    for name in params:
        if name not in shape:
            raise unknown_param(_full(inside, name))
    for name, param in shape.items():
        if name in params:
            _check_one(_full(inside, name), params[name], param)
        elif param.required:
            raise missing_param(_full(inside, name))


def _full(inside: str, name: str) -> str:
    return f"{inside}[{name}]" if inside else name


def _check_one(name: str, value: "str | Params", param: Param) -> None:
    if param.kind == "range":
        _check_range(name, value)
    elif param.kind in ("string", "integer"):
        if not isinstance(value, str):
            raise invalid(f"Invalid {param.kind}: {{...}}", param=name)
        _check_text(name, value, param)
    elif not isinstance(value, dict):
        raise invalid("Invalid array" if param.kind == "list" else "Invalid object", param=name)
    elif param.kind == "hash":
        check(value, param.fields, inside=name)
    elif param.kind == "map":
        _check_map(name, value, param)
    elif param.items_max is not None and len(value) > param.items_max:
        raise invalid(f"Array must have at most {param.items_max} elements", param=name)


def _check_range(name: str, value: "str | Params") -> None:
    if isinstance(value, dict):
        check(value, _RANGE, inside=name)
    else:
        _check_text(name, value, Param(kind="integer"))


def _check_map(name: str, value: Params, param: Param) -> None:
    for key, item in value.items():
        if not isinstance(item, str):
            raise invalid("Invalid string: {...}", param=f"{name}[{key}]")
        if len(item) > param.length_max:
            raise _too_long(f"{name}[{key}]", item, param.length_max)


def _check_text(name: str, value: str, param: Param) -> None:
    if not value:
        raise invalid(f"You passed an empty string for '{name}'.", param=name, code="parameter_invalid_empty")
    if len(value) > param.length_max:
        raise _too_long(name, value, param.length_max)
    if param.choices and value not in param.choices:
        allowed = " or ".join(param.choices)
        raise invalid(f"Invalid {name}: must be one of {allowed}", param=name)
    if param.kind == "integer" and not _is_integer(value):
        raise invalid(f"Invalid integer: {value}", param=name, code="parameter_invalid_integer")


def _is_integer(value: str) -> bool:
    return len(value) <= INTEGER_LENGTH_MAX and value.isascii() and value.removeprefix("-").isdigit()


def _too_long(name: str, value: str, length_max: int) -> Refusal:
    shown = f"{value[:10]}...{value[-3:]}"
    return invalid(f"Invalid string: {shown}; must be at most {length_max} characters", param=name)


def text(params: Params, name: str) -> str | None:
    """Return a checked string parameter, None if absent."""
    value = params.get(name)
    return value if isinstance(value, str) else None


def integer(params: Params, name: str) -> int | None:
    """Return a checked integer parameter, None if absent."""
    value = text(params, name)
    return None if value is None else int(value)


def strings(params: Params, name: str) -> dict[str, str]:
    """Return a checked map of strings, empty if absent."""
    value = params.get(name)
    return {key: item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}
