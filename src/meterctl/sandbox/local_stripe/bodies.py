"""What the control API reads from a request: JSON of a known form, or a ValueError that says what is wrong."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs

Body = Mapping[str, object]


def read(query: str, text: str) -> Body:
    """Given a query and a JSON text, return both as one object; a list becomes its `items`."""
    document = json.loads(text) if text else {}
    if isinstance(document, list):
        return {"items": document}
    if not isinstance(document, dict):
        raise ValueError("The body must be a JSON object.")  # noqa: TRY004  # becomes a 400
    return {**{name: values[-1] for name, values in parse_qs(query).items()}, **document}


def objects(body: Body) -> list[Body]:
    """Return the objects of a list, or the one there is."""
    found = body.get("items", [body])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError("Give a JSON object, or a list of them.")
    return found


def live(body: Body) -> bool:
    """Whether live data are meant."""
    return body.get("livemode") in (True, "true", "1")


def text(body: Body, name: str) -> str:
    """Return a text that must be there."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{name}` must be a string.")
    return value


def optional_text(body: Body, name: str) -> str | None:
    """Return a text that may be there."""
    return text(body, name) if body.get(name) is not None else None


def texts(body: Body, name: str) -> list[str] | None:
    """Return a list of texts that may be there."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"`{name}` must be a list of strings.")
    return value


def mapping(body: Body, name: str) -> dict[str, object] | None:
    """Return an object that may be there."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be an object.")  # becomes a 400
    return value


def labels(body: Body, name: str) -> dict[str, str] | None:
    """Return an object of texts that may be there, such as metadata."""
    found = mapping(body, name)
    return None if found is None else {key: str(value) for key, value in found.items()}


def number(body: Body, name: str) -> float:
    """Return a number that must be there."""
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a number.")  # noqa: TRY004  # becomes a 400
    return value


def count(body: Body, name: str, default: int) -> int:
    """Return a whole number of at least 1, `default` where it is not there."""
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1.")
    return value


def instant(body: Body, name: str) -> datetime:
    """Return an instant that must be there: RFC 3339, or unix seconds."""
    value = body.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str) and (found := datetime.fromisoformat(value)).tzinfo is not None:
        return found
    raise ValueError(f"`{name}` must be an RFC 3339 instant with an offset, such as Z, or unix seconds.")


def optional_instant(body: Body, name: str) -> datetime | None:
    """Return an instant that may be there."""
    return instant(body, name) if body.get(name) is not None else None
