"""Faults and rejections as JSON, as the control API takes them."""

from collections.abc import Mapping
from dataclasses import fields

from meterctl.sandbox.local_stripe.faults import Fault, FaultKind, RandomFaults
from meterctl.sandbox.local_stripe.rejections import RandomRejections


def fault_of(document: Mapping[str, object]) -> Fault:
    """Given a Fault's fields as JSON, return it; raise ValueError naming what does not fit."""
    _check_fields(document, Fault)
    for name in ("nth", "times", "status"):
        _check_number(document, name, int, least=1)
    _check_number(document, "delay_s", (int, float), least=0)
    if document.get("when", "before") not in ("before", "after"):
        raise ValueError("A fault's `when` is before or after.")
    kind = _kind(document.get("kind"))
    return Fault(**{**document, "kind": kind})  # type: ignore[arg-type]  # names and types were checked just above


def random_faults_of(document: Mapping[str, object]) -> RandomFaults:
    """Given RandomFaults' fields as JSON, return them; raise ValueError naming what does not fit."""
    _check_fields(document, RandomFaults)
    for name in ("seed", "rate", "kinds"):
        if name not in document:
            raise ValueError(f"Random faults need `{name}`.")
    _check_number(document, "seed", int, least=None)
    _check_number(document, "rate", (int, float), least=0)
    _check_number(document, "per_identifier_max", int, least=0)
    _check_number(document, "delay_s", (int, float), least=0)
    kinds = document["kinds"]
    if not isinstance(kinds, list | tuple) or not kinds:
        raise ValueError("Random faults need a list of `kinds`.")
    checked = {**document, "kinds": tuple(_kind(kind) for kind in kinds)}
    return RandomFaults(**checked)  # type: ignore[arg-type]  # names and types were checked just above


def random_rejections_of(document: Mapping[str, object]) -> RandomRejections:
    """Given RandomRejections' fields as JSON, return them; raise ValueError naming what does not fit."""
    _check_fields(document, RandomRejections)
    for name in ("seed", "rate"):
        if name not in document:
            raise ValueError(f"Random rejections need `{name}`.")
    _check_number(document, "seed", int, least=None)
    for name in ("rate", "false_rate"):
        _check_number(document, name, (int, float), least=0)
    _check_number(document, "per_identifier_max", int, least=0)
    return RandomRejections(**document)  # type: ignore[arg-type]  # names and types were checked just above


def _kind(value: object) -> FaultKind:
    kinds = [kind.value for kind in FaultKind]
    if value not in kinds:
        raise ValueError(f"There is no fault of the kind {value!r}; kinds are {', '.join(kinds)}.")
    return FaultKind(str(value))


def _check_fields(document: Mapping[str, object], of: type[Fault | RandomFaults | RandomRejections]) -> None:
    known = {field.name for field in fields(of)}
    if unknown := sorted(set(document) - known):
        raise ValueError(f"Unknown field {unknown[0]!r}; there are {', '.join(sorted(known))}.")
    for name in ("operation", "identifier", "customer", "event_name", "code", "message"):
        if not isinstance(document.get(name, ""), str | None):
            raise ValueError(f"`{name}` must be a string.")  # noqa: TRY004  # becomes a 400


def _check_number(
    document: Mapping[str, object], name: str, kind: type | tuple[type, ...], *, least: int | None
) -> None:
    value = document.get(name)
    if value is None:
        return
    if not isinstance(value, kind) or isinstance(value, bool) or (least is not None and value < least):  # type: ignore[operator]  # kind is a number
        raise ValueError(f"`{name}` cannot be {value!r}.")
