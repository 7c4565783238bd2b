"""Whether a meter of Stripe's is what the configuration takes it to be."""

from collections.abc import Iterator
from dataclasses import dataclass

from meterctl.core.diagnosis import Finding, failed


@dataclass(frozen=True, kw_only=True, slots=True)
class StripeMeter:
    """A meter as Stripe has it. `customer_key` and `value_key` are the payload keys that it reads."""

    id: str
    event_name: str
    active: bool
    formula: str
    customer_key: str
    value_key: str
    event_time_window: str | None
    livemode: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedMeter:
    """What the configuration says of a meter. `every_event_counts`: its events add up, so that none may be dropped."""

    event_name: str
    formula: str
    customer_key: str
    value_key: str
    every_event_counts: bool
    livemode: bool


def chosen(event_name: str, meters: list[StripeMeter]) -> StripeMeter | None:
    """Return the meter of this event_name, the active one where others were deactivated."""
    return max((one for one in meters if one.event_name == event_name), key=lambda one: one.active, default=None)


def faults_of(found: StripeMeter, wanted: WantedMeter) -> Iterator[Finding]:
    """Yield why usage sent to this meter would be refused, lost or billed as something else."""
    if found.livemode is not wanted.livemode:
        mode = "live" if found.livemode else "test"
        yield failed(f"Stripe answers with a {mode}-mode meter", "check the key, and `stripe.mode`")
    if not found.active:
        yield failed("it is deactivated and takes no events", "reactivate it in Stripe, or make a new one")
    if found.formula != wanted.formula:
        yield failed(f'its formula is "{found.formula}", the configuration says "{wanted.formula}"', _NEW_ONE)
    for what, key, theirs, ours in (
        ("customer", "customer_payload_key", found.customer_key, wanted.customer_key),
        ("value", "value_payload_key", found.value_key, wanted.value_key),
    ):
        if theirs != ours:
            yield failed(f'it reads the {what} from "{theirs}", meterctl sends "{ours}"', f'set {key} = "{theirs}"')
    if wanted.every_event_counts and found.event_time_window is not None:
        window = found.event_time_window
        message = f'its event_time_window is "{window}": only the last event of each {window} counts, others are lost'
        yield failed(message, "make a meter without one; a meter cannot be changed")


_NEW_ONE = "correct `formula`, or make a new meter: one cannot be changed"
