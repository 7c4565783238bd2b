"""The switches of the local Stripe."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class StripeOptions:
    """How this Stripe behaves where the real one is configurable, slow, or not known for certain."""

    account_id: str = "acct_sandboxexample"
    """Id that `GET /v1/account` answers, in both modes."""

    identifier_window_h: float = 24
    """Hours for which a repeated `identifier` is refused. Stripe promises "at least 24 hours"."""

    idempotency_window_h: float = 24
    """Hours for which the answer to an `Idempotency-Key` is replayed."""

    summary_lag_s: float = 0
    """An event counts in summaries once `received + lag <= now`, by the sandbox's clock."""

    unknown_customer: Literal["now", "later"] = "now"
    """`now`: 400 at once. `later`: 200, not counted, told in an error report and listed as asynchronous rejections."""

    bad_value: Literal["now", "later"] = "now"
    """The same for a value that is no number, or one of too many digits."""

    inactive_meter: Literal["now", "later"] = "now"
    """The same for an event_name whose meter is archived, or that no meter ever had."""

    validation_lag_s: float = 2
    """An error report comes once its window of 10 s has been over for so long, by the sandbox's clock."""

    report_samples_max: int = 10
    """Samples for each kind of error that a report shows; it counts all."""

    report_names: Literal["identifier", "idempotency_key"] = "identifier"
    """What a sample's `request.identifier` holds: of the real one it is not known."""

    duplicate_reports: bool = False
    """Whether every report comes twice, as two events."""

    zero_usage: Literal["empty", "zero_row"] = "empty"
    """What summaries give where there was no usage: no row, or a row of 0."""

    events_before_basil: bool = False
    """Events in the shape before 2025-03-31.basil: a subscription's period on itself, an invoice's subscription too."""

    v2_list_has_data: bool = False
    """Whether the events that `GET /v2/core/events` lists carry their `data`."""

    event_list_lag_s: float = 0
    """An event shows in lists this long after it came to be, by the sandbox's clock; retrieved, it is there at once."""

    event_list_seed: int | None = None
    """Draws each event's own lag, up to that one, and an order for the events of one second."""

    delivery_retry_s: tuple[float, ...] = (1, 5, 25)
    """Real seconds after which a delivery is tried again, one after the other; the real ones go on for days."""

    duplicate_deliveries: bool = False
    """Whether every event is delivered twice."""

    latency_ms: float = 0
    """Real milliseconds each call of the API takes, half before and half after it is executed."""

    rate_limit_per_s: float | None = None
    """Calls a second and mode, by real time, above which 429 is answered; None is no limit."""

    concurrency_check: bool = True
    """Refuse a meter event while another of the same customer and meter is being answered."""

    accept_any_key: bool = True
    """Any key with a well-formed prefix works; otherwise only registered ones do."""

    mute: bool = False
    """Accept connections and requests, never answer (the control API still does)."""

    request_log_max: int = 100_000
    """Requests kept in the log, newest; the counts cover all."""

    def patched(self, changes: Mapping[str, object]) -> "StripeOptions":
        """Return the options with `changes`; raise ValueError naming what is unknown or of the wrong type."""
        known = {field.name for field in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"Unknown option {name!r}; there are {', '.join(sorted(known))}.")
            _check(name, value)
        fitted = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
        return replace(self, **fitted)  # type: ignore[arg-type]  # names and types were checked just above


def _check(name: str, value: object) -> None:
    if not _fits(name, value):
        raise ValueError(f"Option {name!r} cannot be {value!r}.")


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "unknown_customer": ("now", "later"),
    "bad_value": ("now", "later"),
    "inactive_meter": ("now", "later"),
    "report_names": ("identifier", "idempotency_key"),
    "zero_usage": ("empty", "zero_row"),
}
_BOOLEANS = frozenset(
    {
        "concurrency_check",
        "accept_any_key",
        "mute",
        "duplicate_deliveries",
        "duplicate_reports",
        "events_before_basil",
        "v2_list_has_data",
    }
)
_OPTIONAL = frozenset({"rate_limit_per_s", "event_list_seed"})
_INTEGERS = frozenset({"event_list_seed", "report_samples_max", "request_log_max"})


def _fits(name: str, value: object) -> bool:
    if name in _CHOICES:
        return value in _CHOICES[name]
    if name in _BOOLEANS:
        return isinstance(value, bool)
    if name == "account_id":
        return isinstance(value, str) and value.startswith("acct_")
    if name in _OPTIONAL and value is None:
        return True
    if name == "delivery_retry_s":
        return isinstance(value, list | tuple) and all(_is_number(each) for each in value)
    return _is_number(value) and (name not in _INTEGERS or isinstance(value, int))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
