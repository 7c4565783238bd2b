"""What is found wrong with a meter event after its 200: by validation, by script, or by seed."""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from meterctl.sandbox.local_stripe.errors import Refusal
from meterctl.sandbox.local_stripe.model import Json, StoredEvent, iso

CUSTOMER_NOT_FOUND = "meter_event_customer_not_found"
NO_METER = "no_meter"

When = Literal["now", "later"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AsyncRejection:
    """An event that was answered with 200 and found invalid afterwards; `meter_id` is None where no meter was found."""

    code: str
    message: str
    identifier: str
    idempotency_key: str | None
    event_name: str
    meter_id: str | None
    customer: str
    received: datetime
    livemode: bool

    def record(self) -> Json:
        """Return it as JSON."""
        return {
            "code": self.code,
            "message": self.message,
            "identifier": self.identifier,
            "idempotency_key": self.idempotency_key,
            "event_name": self.event_name,
            "meter_id": self.meter_id,
            "customer": self.customer,
            "received": iso(self.received),
            "livemode": self.livemode,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Why an accepted event is reported. A false one is `dropped` not: the event counts all the same."""

    code: str
    message: str | None = None
    dropped: bool = True

    def of(self, event: StoredEvent) -> AsyncRejection:
        """Return the rejection of an event that was judged so."""
        return AsyncRejection(
            code=self.code,
            message=self.message or _message(self.code, event),
            identifier=event.identifier,
            idempotency_key=event.idempotency_key,
            event_name=event.event_name,
            meter_id=None if self.code == NO_METER else event.meter_id,
            customer=event.customer,
            received=event.received,
            livemode=event.livemode,
        )


def _message(code: str, event: StoredEvent) -> str:
    if code == CUSTOMER_NOT_FOUND:
        return f"No customer was found matching {event.customer}."
    if code == NO_METER:
        return f"No meter was found matching event_name {event.event_name}."
    return f"The event was rejected: {code}."


@dataclass(slots=True)
class Findings:
    """What validation finds: raised where it is told now, else the first is kept."""

    first: Verdict | None = None

    def add(self, when: When, refusal: Refusal, verdict: Verdict) -> None:
        """Raise the refusal, or keep the verdict for later."""
        if when == "now":
            raise refusal
        self.first = self.first or verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedRejection:
    """Drops the next `times` accepted events that match all that is given."""

    identifier: str | None = None
    customer: str | None = None
    event_name: str | None = None
    times: int = 1
    code: str = CUSTOMER_NOT_FOUND

    def matches(self, identifier: str, customer: str, event_name: str) -> bool:
        """Whether an accepted event is one of those it drops."""
        return (
            self.identifier in (None, identifier)
            and self.customer in (None, customer)
            and self.event_name in (None, event_name)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomRejections:
    """Rejections by seed: of accepted events `rate` (0 to 1) are dropped; `false_rate` are reported though they count.

    The draw depends on the seed, the identifier and how often it was accepted, not on the order of concurrent calls.
    `per_identifier_max` bounds how often an identifier is struck.
    """

    seed: int
    rate: float
    false_rate: float = 0.0
    per_identifier_max: int | None = None
    code: str = CUSTOMER_NOT_FOUND

    def draw(self, identifier: str, count: int) -> Verdict | None:
        """Return the verdict on the event number `count` (from 1) of an identifier, if any."""
        drawn = random.Random(f"{self.seed}/{identifier}/{count}").random()  # noqa: S311  # repeatable by seed, nothing secret
        if drawn < self.rate + self.false_rate:
            return Verdict(code=self.code, dropped=drawn < self.rate)
        return None


@dataclass(slots=True)
class _Scripted:
    rejection: ScriptedRejection
    left: int


@dataclass(slots=True)
class RejectionScript:
    """The rejections in force in one mode. Scripted ones come first, the earliest added before others."""

    random: RandomRejections | None = None
    _scripted: list[_Scripted] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)
    _struck: Counter[str] = field(default_factory=Counter)

    def add(self, rejection: ScriptedRejection) -> None:
        """Put a rejection in force."""
        self._scripted.append(_Scripted(rejection, rejection.times))

    def set_random(self, rejections: RandomRejections | None) -> None:
        """Put seeded rejections in force, in place of others; None takes them out."""
        self.random = rejections
        self._seen.clear()
        self._struck.clear()

    def pick(self, identifier: str, customer: str, event_name: str) -> Verdict | None:
        """Return the verdict on an event that is about to be accepted, if any."""
        for scripted in self._scripted:
            if scripted.left and scripted.rejection.matches(identifier, customer, event_name):
                scripted.left -= 1
                return Verdict(code=scripted.rejection.code)
        return self._draw(identifier)

    def _draw(self, identifier: str) -> Verdict | None:
        if self.random is None:
            return None
        self._seen[identifier] += 1
        if self.random.per_identifier_max is not None and self._struck[identifier] >= self.random.per_identifier_max:
            return None
        verdict = self.random.draw(identifier, self._seen[identifier])
        self._struck[identifier] += verdict is not None
        return verdict
