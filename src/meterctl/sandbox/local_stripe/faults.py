"""What can go wrong on purpose, and when: by position, by what the call is about, or by seed."""

import random
from collections import Counter
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Literal

from meterctl.sandbox.local_stripe.errors import (
    ErrorBody,
    forbidden,
    lock_timeout,
    rate_limited,
    unauthorized,
    unknown_url,
)
from meterctl.sandbox.local_stripe.model import Json

METER_EVENTS = "meter_events.create"
EVERY_OPERATION = "*"


class FaultKind(StrEnum):
    """What happens to the call."""

    LOST_ANSWER = "lost_answer"
    """Executed and stored; then the connection is closed without an answer."""
    RESET = "reset"
    """The connection is reset; nothing was executed."""
    TIME_OUT = "time_out"
    """Never answered, until the client leaves; executed or not, as `when` says (default before)."""
    SLOW = "slow"
    """Answered after `delay_s` seconds, executed only then."""
    ERROR_500 = "error_500"
    """A 500 that is stored under the Idempotency-Key; the event stored or not, as `when` says (default before)."""
    BAD_REQUEST = "bad_request"
    """400 with `message`, stored under the Idempotency-Key, nothing executed."""
    HTML = "html"
    """A proxy's page with `status` (default 502); the call executed behind it or not, as `when` says."""
    RATE_LIMITED = "rate_limited"
    """429 with Stripe-Rate-Limited-Reason; a burst by `times`."""
    LOCK_TIMEOUT = "lock_timeout"
    """429 with code lock_timeout."""
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    REQUEST_TIMEOUT = "request_timeout"
    CONFLICT = "conflict"
    """409; `code` may be idempotency_key_in_use."""


When = Literal["before", "after"]

INTERCEPTING = frozenset(
    {
        FaultKind.RATE_LIMITED,
        FaultKind.LOCK_TIMEOUT,
        FaultKind.UNAUTHORIZED,
        FaultKind.FORBIDDEN,
        FaultKind.NOT_FOUND,
        FaultKind.REQUEST_TIMEOUT,
        FaultKind.CONFLICT,
    }
)
"""Kinds that answer before anything is looked at; nothing of theirs is stored under the Idempotency-Key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A scripted fault.

    It strikes calls of `operation` that match every given one of `identifier`, `customer` and `event_name`: of those,
    counted from when it was added, number `nth` (from 1) and the ones after it, `times` in all (None: from then on).
    `when` is before or after execution, where the kind leaves that open. `status`, `code` and `message` replace the
    kind's own. `delay_s` is for `slow`.
    """

    kind: FaultKind
    nth: int = 1
    times: int | None = 1
    operation: str = METER_EVENTS
    identifier: str | None = None
    customer: str | None = None
    event_name: str | None = None
    when: When = "before"
    status: int | None = None
    code: str | None = None
    message: str | None = None
    delay_s: float = 1.0

    def matches(self, subject: "Subject") -> bool:
        """Whether a call is one of those this fault counts."""
        return (
            self.operation in (subject.operation, EVERY_OPERATION)
            and self.identifier in (None, subject.identifier)
            and (self.customer is None or self.customer in subject.customers)
            and self.event_name in (None, subject.event_name)
        )

    def strikes(self, count: int) -> bool:
        """Whether it strikes the matching call number `count`."""
        return count >= self.nth and (self.times is None or count < self.nth + self.times)

    def error(self, path: str) -> ErrorBody:
        """Return the error answer of this kind."""
        return self._with_own(_error_of(self.kind, path))

    def _with_own(self, body: ErrorBody) -> ErrorBody:
        return ErrorBody(
            status=self.status or body.status,
            message=self.message or body.message,
            type=body.type,
            code=self.code or body.code,
            param=body.param,
            headers=body.headers,
        )

    def record(self) -> Json:
        """Return it as JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a call is about, as far as faults can tell. `customers` holds every payload value."""

    operation: str
    identifier: str | None
    event_name: str | None
    customers: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomFaults:
    """Faults by seed: each call of `operation` draws one of `kinds` with probability `rate` (0 to 1).

    The draw depends on the seed, the identifier and how often it was seen, not on the order of concurrent calls.
    `per_identifier_max` bounds how many calls of one identifier are struck, so that everything gets through at last.
    """

    seed: int
    rate: float
    kinds: tuple[FaultKind, ...]
    operation: str = METER_EVENTS
    per_identifier_max: int | None = None
    delay_s: float = 0.05

    def draw(self, name: str, count: int) -> Fault | None:
        """Return what strikes the call number `count` (from 1) of `name`, if anything."""
        chance = random.Random(f"{self.seed}/{name}/{count}")  # noqa: S311  # repeatable by seed, nothing secret
        if chance.random() >= self.rate:
            return None
        kind = chance.choice(self.kinds)
        when: When = "after" if chance.random() < 0.5 else "before"  # noqa: PLR2004  # a fair coin
        return Fault(kind=kind, when=when, operation=self.operation, delay_s=self.delay_s)

    def record(self) -> Json:
        """Return it as JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(slots=True)
class _Scripted:
    fault: Fault
    seen: int = 0
    struck: int = 0


@dataclass(slots=True)
class FaultScript:
    """The faults in force. Every matching one counts a call; the earliest added of those that strike is taken."""

    random: RandomFaults | None = None
    _scripted: list[_Scripted] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)
    _struck: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Fault) -> None:
        """Put a fault in force, counting from the next call."""
        self._scripted.append(_Scripted(fault))

    def clear(self) -> None:
        """Take all faults out of force."""
        self._scripted.clear()
        self.set_random(None)

    def set_random(self, faults: RandomFaults | None) -> None:
        """Put seeded faults in force, in place of others; None takes them out."""
        self.random = faults
        self._seen.clear()
        self._struck.clear()

    def pick(self, subject: Subject) -> Fault | None:
        """Count a call and return what strikes it."""
        chosen: _Scripted | None = None
        for scripted in self._scripted:
            if scripted.fault.matches(subject):
                scripted.seen += 1
                if chosen is None and scripted.fault.strikes(scripted.seen):
                    chosen = scripted
        if chosen is not None:
            chosen.struck += 1
            return chosen.fault
        return self._draw(subject)

    def _draw(self, subject: Subject) -> Fault | None:
        if self.random is None or self.random.operation not in (subject.operation, EVERY_OPERATION):
            return None
        name = subject.identifier or subject.operation
        self._seen[name] += 1
        if self.random.per_identifier_max is not None and self._struck[name] >= self.random.per_identifier_max:
            return None
        fault = self.random.draw(name, self._seen[name])
        self._struck[name] += fault is not None
        return fault

    def record(self) -> Json:
        """Return what is in force, with how often each matched and struck."""
        return {
            "scripted": [
                {**scripted.fault.record(), "seen": scripted.seen, "struck": scripted.struck}
                for scripted in self._scripted
            ],
            "random": None if self.random is None else self.random.record(),
        }


def _error_of(kind: FaultKind, path: str) -> ErrorBody:
    if kind is FaultKind.NOT_FOUND:
        return unknown_url("POST", path).body
    return _ERRORS[kind]


_ERRORS = {
    FaultKind.ERROR_500: ErrorBody(status=500, type="api_error", message="An unknown error occurred."),
    FaultKind.BAD_REQUEST: ErrorBody(status=400, message="This request was refused by a scripted fault."),
    FaultKind.RATE_LIMITED: rate_limited("endpoint-rate").body,
    FaultKind.LOCK_TIMEOUT: lock_timeout().body,
    FaultKind.UNAUTHORIZED: unauthorized("Invalid API Key provided, says a scripted fault.").body,
    FaultKind.FORBIDDEN: forbidden("The provided key does not have the required permissions.").body,
    FaultKind.REQUEST_TIMEOUT: ErrorBody(status=408, type="api_error", message="The request timed out."),
    FaultKind.CONFLICT: ErrorBody(status=409, message="The request conflicts with another one."),
}
