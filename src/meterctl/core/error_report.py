"""What Stripe's validation says about meter events after it has answered 200.

A report (`v1.billing.meter.error_report_triggered`, `…no_meter_found`) is evidence: it names some requests, and counts
errors that it does not name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meterctl.core.stripe_event import EARLIEST, LATEST, StripeEvent, object_in, text_in
from meterctl.errors import InputError

REPORT_TYPES = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})

_KEY = re.compile(r"(.+):[0-9]+", re.DOTALL)
"""An Idempotency-Key of ours: the identifier, and how many answers had been heard."""

_HASHED_KEY = re.compile(r"[0-9a-f]{64}")
"""What stands for a key that a header cannot carry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorSample:
    """One error that a report names. `named`: our identifier, or the Idempotency-Key; Stripe does not say which."""

    named: str
    code: str
    message: str | None

    @property
    def identifiers(self) -> tuple[str, ...]:
        """The identifiers that it may mean."""
        key = _KEY.fullmatch(self.named)
        return (self.named, key[1]) if key else (self.named,)

    @property
    def may_be_hashed(self) -> bool:
        """Whether it may stand for a key that a header cannot carry."""
        return _HASHED_KEY.fullmatch(self.named) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReport:
    """One report. Instants are aware UTC; what was validated between them is what it is about."""

    event: StripeEvent
    meter_id: str | None
    error_count: int
    samples: tuple[ErrorSample, ...]
    validation_start: datetime
    validation_end: datetime

    @property
    def unnamed_count(self) -> int:
        """Errors that no sample names."""
        return self.error_count - len(self.samples)


def read_report(event: StripeEvent) -> ErrorReport:
    """Given a whole event, return its report. Raises InputError naming what it lacks."""
    data = _required(event.payload, "data", "data")
    reason = _required(data, "reason", "data.reason")
    samples = tuple(_samples(reason.get("error_types")))
    return ErrorReport(
        event=event,
        meter_id=text_in(object_in(event.payload, "related_object"), "id"),
        error_count=max(_count(reason, samples), len(samples)),
        samples=samples,
        validation_start=_instant(data.get("validation_start"), event.created),
        validation_end=_instant(data.get("validation_end"), event.created),
    )


def _samples(error_types: object) -> Iterator[ErrorSample]:
    for kind in _tables(error_types):
        code = text_in(kind, "code") or "unknown"
        for sample in _tables(kind.get("sample_errors")):
            request = object_in(sample, "request")
            yield ErrorSample(named=_named(request), code=code, message=text_in(sample, "error_message"))


def _named(request: Mapping[str, Any]) -> str:
    """Return what names the request: older examples have `idempotency_key` (or `id`) where newer have `identifier`."""
    return next((text for key in ("identifier", "idempotency_key", "id") if (text := text_in(request, key))), "")


def _count(reason: Mapping[str, Any], samples: Sequence[ErrorSample]) -> int:
    count = reason.get("error_count")
    return count if isinstance(count, int) and not isinstance(count, bool) else len(samples)


def _instant(value: object, default: datetime) -> datetime:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else default
    except ValueError:
        return default
    return found.astimezone(UTC) if found.tzinfo and EARLIEST <= found < LATEST else default


def _required(values: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    if not isinstance(values.get(key), Mapping):
        raise InputError(f"the error report has no {name}", hint="fetch it anew: `meterctl webhooks pull`")
    return object_in(values, key)


def _tables(value: object) -> Iterator[Mapping[str, Any]]:
    yield from (one for one in (value if isinstance(value, list | tuple) else ()) if isinstance(one, Mapping))
