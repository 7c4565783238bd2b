"""In-process access to everything the local Stripe keeps; `/_sandbox` is the same over HTTP."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from meterctl.sandbox.local_stripe import prices, resources
from meterctl.sandbox.local_stripe.clock import SandboxClock
from meterctl.sandbox.local_stripe.engine import Engine
from meterctl.sandbox.local_stripe.errors import Refusal
from meterctl.sandbox.local_stripe.faults import Fault, FaultKind, RandomFaults
from meterctl.sandbox.local_stripe.model import (
    Customer,
    Formula,
    Json,
    LoggedRequest,
    Meter,
    Price,
    StoredEvent,
    Window,
)
from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.rejections import AsyncRejection
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

Result = TypeVar("Result")


class Console:
    """Prepare, disturb and read back a local Stripe, from any thread. `livemode` picks the data; default is test."""

    def __init__(self, options: StripeOptions | None = None, clock: Callable[[], datetime] | None = None) -> None:
        self._options_at_start = options or StripeOptions()
        self.engine = Engine(self._options_at_start, SandboxClock(clock))

    @property
    def clock(self) -> SandboxClock:
        """The sandbox's clock: `now()`, `set(instant, frozen=…)`, `advance(timedelta)`, `freeze()`, `reset()`."""
        return self.engine.clock

    @property
    def options(self) -> StripeOptions:
        """The options in force."""
        return self.engine.options

    def set_options(self, **changes: object) -> None:
        """Change some options from the next call on; raise ValueError on an unknown name or wrong type."""
        self.patch_options(changes)

    def patch_options(self, changes: Mapping[str, object]) -> None:
        """Do the same from a mapping."""
        with self.engine.lock:
            self.engine.options = self.engine.options.patched(changes)

    def reset(self) -> None:
        """Return to the state at the start: no objects, events, faults, log; options and clock as they were given."""
        with self.engine.lock:
            self.engine.options = self._options_at_start
            self.clock.reset()
            self.engine.wipe()

    def create_customer(
        self, customer_id: str | None = None, *, name: str | None = None, livemode: bool = False
    ) -> Customer:
        """Add a customer under a chosen id; raise ValueError where it is taken."""
        fields = {} if name is None else {"name": name}
        return self._with_books(
            livemode,
            lambda books, context: resources.create_customer(books, {**fields}, context, customer_id=customer_id),
        )

    def create_meter(
        self,
        *,
        event_name: str,
        formula: Formula = "sum",
        display_name: str | None = None,
        customer_key: str = "stripe_customer_id",
        value_key: str = "value",
        event_time_window: Window | None = None,
        livemode: bool = False,
    ) -> Meter:
        """Add an active meter; raise ValueError where `event_name` has one."""
        window = {} if event_time_window is None else {"event_time_window": event_time_window}
        return self._with_books(
            livemode,
            lambda books, context: resources.create_meter(
                books,
                {
                    "event_name": event_name,
                    "display_name": display_name or event_name,
                    "default_aggregation": {"formula": formula},
                    "customer_mapping": {"event_payload_key": customer_key, "type": "by_id"},
                    "value_settings": {"event_payload_key": value_key},
                    **window,
                },
                context,
            ),
        )

    def deactivate_meter(self, meter_id: str, *, livemode: bool = False) -> Meter:
        """Make a meter refuse events; raise ValueError where it does or is not there."""
        return self._with_books(livemode, lambda books, context: resources.deactivate_meter(books, meter_id, context))

    def create_price(
        self, meter_id: str, *, unit_amount: str = "1", active: bool = True, livemode: bool = False
    ) -> Price:
        """Link a monthly metered price to a meter; raise ValueError where the meter is inactive or not there."""
        return self._with_books(
            livemode,
            lambda books, context: prices.create_price(
                books,
                {
                    "active": str(active).lower(),
                    "currency": "usd",
                    "product_data": {"name": "Usage"},
                    "recurring": {"interval": "month", "meter": meter_id, "usage_type": "metered"},
                    "unit_amount_decimal": unit_amount,
                },
                context,
            ),
        )

    def customers(self, *, livemode: bool = False) -> list[Customer]:
        """Return all customers."""
        return self._with_books(livemode, lambda books, _: list(books.customers.values()))

    def meters(self, *, livemode: bool = False) -> list[Meter]:
        """Return all meters, inactive ones too."""
        return self._with_books(livemode, lambda books, _: list(books.meters.values()))

    def events(self, *, livemode: bool = False) -> list[StoredEvent]:
        """Return every stored event in order of arrival."""
        return self._with_books(livemode, lambda books, _: books.records())

    def totals(self, *, livemode: bool = False) -> dict[tuple[str, str], Decimal]:
        """Return the exact total per (event_name, customer) by the meter's formula, of counted events, without lag."""
        return self._with_books(livemode, lambda books, _: books.totals())

    def async_rejections(self, *, livemode: bool = False) -> list[AsyncRejection]:
        """Return the events answered with 200 and dropped afterwards."""
        return self._with_books(livemode, lambda books, _: list(books.rejections))

    def requests(self, operation: str | None = None) -> list[LoggedRequest]:
        """Return the request log, oldest first; `operation` (such as `meter_events.create`) picks."""
        with self.engine.lock:
            return [request for request in self.engine.log if operation in (None, request.operation)]

    def request_counts(self) -> dict[str, dict[str, int]]:
        """Return operation → status (or "no answer") → number, of all requests, those that left the log too."""
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        with self.engine.lock:
            for (operation, status), number in self.engine.counts.items():
                counts[operation][status] = number
        return dict(counts)

    def add_fault(self, fault: Fault | FaultKind) -> None:
        """Put a fault in force, counting from the next call; a kind alone strikes the next meter event."""
        with self.engine.lock:
            self.engine.faults.add(Fault(kind=fault) if isinstance(fault, FaultKind) else fault)

    def set_random_faults(self, faults: RandomFaults | None) -> None:
        """Put seeded faults in force in place of others; None takes them out."""
        with self.engine.lock:
            self.engine.faults.set_random(faults)

    def clear_faults(self) -> None:
        """Take every fault out of force, random ones too."""
        with self.engine.lock:
            self.engine.faults.clear()

    def faults(self) -> Json:
        """Return what is in force, with how often each matched and struck."""
        with self.engine.lock:
            return self.engine.faults.record()

    def add_key(self, key: str, *, allowed: Iterable[str] | None = None) -> None:
        """Register an API key; `allowed` lists operations (patterns such as `meters.*`), all others answer 403."""
        with self.engine.lock:
            self.engine.keys.add(key, allowed=allowed)

    def revoke_key(self, key: str) -> None:
        """Make an API key answer 401."""
        with self.engine.lock:
            self.engine.keys.revoke(key)

    def _with_books(self, livemode: bool, act: Callable[[Books, Context], Result]) -> Result:  # noqa: FBT001  # private, always passed on
        with self.engine.lock:
            try:
                return act(self.engine.books(livemode=livemode), self.engine.context())
            except Refusal as refusal:
                raise ValueError(refusal.body.message) from refusal
