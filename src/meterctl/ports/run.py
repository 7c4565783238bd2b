"""What a run works with: Stripe, who carries out claims, the lock, and being asked to stop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from meterctl.core.meter_check import StripeMeter
from meterctl.core.model import Claim, Heard, MeterEvent, Outcome


class MeterCatalog(Protocol):
    """Stripe's meters, and what they cost."""

    def meters(self) -> list[StripeMeter]:
        """Return all meters, deactivated ones too. Raises the MeterctlError that fits."""
        ...

    def is_priced(self, meter_id: str) -> bool:
        """Return whether an active price is linked to the meter. Raises the MeterctlError that fits."""
        ...


class MeterEvents(Protocol):
    """Stripe's side: one event a call."""

    def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
        """Send the event once and say what came of it. Never raises for anything the far side or the network does."""
        ...


class Dispatcher(Protocol):
    """Carries out claims, perhaps many at a time."""

    @property
    def outstanding(self) -> int:
        """How many submitted claims have not been handed back by `heard`."""
        ...

    def submit(self, claims: Sequence[Claim], *, claimed_elapsed_s: float, claimed_wall_s: float) -> None:
        """Queue claims; the clock readings were taken before they were committed."""
        ...

    def heard(self, *, timeout_s: float) -> list[Heard]:
        """Return the outcomes that are in, waiting at most `timeout_s` for the first."""
        ...

    def cancel_queued(self) -> None:
        """Send nothing more: claims not under way come back from `heard` as not sent."""
        ...


class Lock(Protocol):
    """The lock of the meter being worked on."""

    def keep(self) -> None:
        """Keep it. Raises UnavailableError when it is lost."""
        ...


@dataclass(slots=True)
class StopRequest:
    """Set by a signal: finish what is in flight, start nothing new."""

    signal_number: int | None = field(default=None)

    @property
    def requested(self) -> bool:
        """Whether somebody asked us to stop."""
        return self.signal_number is not None
