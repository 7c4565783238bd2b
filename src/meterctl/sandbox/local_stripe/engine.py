"""A request from arrival to answer, without any I/O: authenticate, admit, execute, remember.

Execution is split so that latency can pass in between: `admit` takes the idempotency key and the lane, `execute` acts,
`release` gives them back. Each step holds the lock, so a step is atomic for every thread.
"""

import json
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from meterctl.sandbox.local_stripe import forms, rules
from meterctl.sandbox.local_stripe.calls import Call, key_of, read_call
from meterctl.sandbox.local_stripe.clock import SandboxClock
from meterctl.sandbox.local_stripe.errors import ErrorBody, Refusal, invalid, lock_timeout, rate_limited, unknown_url
from meterctl.sandbox.local_stripe.faults import METER_EVENTS, Fault, FaultKind, FaultScript
from meterctl.sandbox.local_stripe.idempotency import Answer
from meterctl.sandbox.local_stripe.keys import Caller, KeyRing, not_permitted
from meterctl.sandbox.local_stripe.limits import Lane, Lanes, TokenBucket
from meterctl.sandbox.local_stripe.model import LoggedRequest
from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.routes import Operation
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

if TYPE_CHECKING:
    from meterctl.sandbox.local_stripe.deliveries import Delivery, Endpoint


@dataclass(slots=True)
class Ticket:
    """A call that may be executed: what it holds until it is released."""

    call: Call
    caller: Caller
    operation: Operation
    books: Books
    idempotency_key: str | None
    lane: Lane | None = field(default=None)


class Engine:
    """The whole state of a local Stripe."""

    def __init__(self, options: StripeOptions, clock: SandboxClock) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.options = options
        self._sequence = 0
        self.wipe()

    def wipe(self) -> None:
        """Forget every object, event, key, fault and request. Options and clock stay; request ids go on."""
        with self.lock:
            self._books = {livemode: Books(livemode=livemode) for livemode in (False, True)}
            self.keys = KeyRing()
            self.faults = FaultScript()
            self._lanes = Lanes()
            self._buckets = {livemode: TokenBucket() for livemode in (False, True)}
            self.log: deque[LoggedRequest] = deque(maxlen=self.options.request_log_max or 1)
            self.endpoints: list[Endpoint] = []
            self.deliveries: list[Delivery] = []
            self.counts: Counter[tuple[str, str]] = Counter()

    def books(self, *, livemode: bool) -> Books:
        """Return the state of one mode. Hold the lock while using it."""
        return self._books[livemode]

    def context(self, call: Call | None = None) -> Context:
        """Return what a call, or somebody at the console, brings besides parameters."""
        return Context(
            now=self.clock.now(),
            options=self.options,
            request_id="" if call is None else call.request_id,
            idempotency_key=None if call is None else call.idempotency_key,
        )

    def arrive(self, method: str, path: str, form: str, headers: Mapping[str, str]) -> tuple[Call, Fault | None]:
        """Given a request as it came in, number and read it; return it with the fault that strikes it."""
        with self.lock:
            self._sequence += 1
            call = read_call(method, path, form, headers, self._sequence)
            return call, self.faults.pick(call.subject())

    def admit(self, call: Call) -> Ticket | Answer:
        """Let a call in, or return the answer it gets without being executed."""
        with self.lock:
            try:
                return self._admit(call)
            except Refusal as refusal:
                return error_answer(call, refusal.body)

    def execute(self, ticket: Ticket, fault: Fault | None) -> Answer:
        """Carry the call out, unless `fault` answers in its place, and store the answer under its key."""
        with self.lock:
            answer = self._outcome(ticket, fault)
            if ticket.idempotency_key is not None:
                ticket.books.keys.keep(ticket.idempotency_key, answer)
            return answer

    def release(self, ticket: Ticket) -> None:
        """Give back what the call holds; a key without an answer is forgotten."""
        with self.lock:
            if ticket.lane is not None:
                self._lanes.leave(ticket.lane)
            if ticket.idempotency_key is not None:
                ticket.books.keys.let_go(ticket.idempotency_key)

    def note(self, call: Call, answer: Answer | None, fault: Fault | None, at: datetime) -> None:
        """Write the request into the log; `answer` None where none was sent."""
        status = None if answer is None else answer.status
        with self.lock:
            self.counts[call.operation_name, str(status or "no answer")] += 1
            self.log.append(
                LoggedRequest(
                    sequence=call.sequence,
                    at=at,
                    method=call.method,
                    path=call.path,
                    operation=call.operation_name,
                    status=status,
                    request_id=call.request_id,
                    idempotency_key=call.idempotency_key,
                    identifier=call.identifier,
                    livemode="_live_" in (call.authorization or ""),
                    fault=None if fault is None else fault.kind.value,
                    replayed=answer is not None and answer.replayed,
                )
            )

    def _admit(self, call: Call) -> Ticket | Answer:
        caller = self.keys.authenticate(call.authorization, accept_any=self.options.accept_any_key)
        if call.operation is None:
            raise unknown_url(call.method, call.path)
        if not caller.may(call.operation.name):
            raise not_permitted(caller, call.operation.name, self.options.account_id)
        if not self._buckets[caller.livemode].take(self.options.rate_limit_per_s):
            raise rate_limited("endpoint-rate" if call.operation.name == METER_EVENTS else "global-rate")
        if call.malformed is not None:
            raise call.malformed
        if call.is_v2 and call.version is None:
            raise invalid("A call of v2 needs a Stripe-Version header.", code="missing_version")
        forms.check(call.params, call.operation.shape)
        ticket = Ticket(call, caller, call.operation, self._books[caller.livemode], key_of(call))
        return self._replay(ticket) or self._in_lane(ticket)

    def _replay(self, ticket: Ticket) -> Answer | None:
        key, call = ticket.idempotency_key, ticket.call
        if key is None:
            return None
        window = timedelta(hours=self.options.idempotency_window_h)
        answer = ticket.books.keys.begin(key, call.fingerprint(), now=self.clock.now(), window=window)
        return None if answer is None else replace(answer, replayed=True)

    def _in_lane(self, ticket: Ticket) -> Ticket:
        place = None
        if self.options.concurrency_check and ticket.operation.name == METER_EVENTS:
            place = rules.lane_of(ticket.books, ticket.call.params)
        if place is None:
            return ticket
        lane = (ticket.books.livemode, *place)
        if not self._lanes.enter(lane):
            self.release(ticket)
            raise lock_timeout()
        ticket.lane = lane
        return ticket

    def _outcome(self, ticket: Ticket, fault: Fault | None) -> Answer:
        kind = None if fault is None else fault.kind
        if fault is not None and (
            kind is FaultKind.BAD_REQUEST or (kind is FaultKind.ERROR_500 and fault.when == "before")
        ):
            return error_answer(ticket.call, fault.error(ticket.call.path))
        answer = self._run(ticket)
        if fault is not None and kind is FaultKind.ERROR_500:
            return error_answer(ticket.call, fault.error(ticket.call.path))
        return answer

    def _run(self, ticket: Ticket) -> Answer:
        call = ticket.call
        try:
            document = ticket.operation.run(ticket.books, call.object_id, call.params, self.context(call))
        except Refusal as refusal:
            return error_answer(call, refusal.body)
        return Answer(status=200, body=json.dumps(document).encode(), headers={}, request_id=call.request_id)


def error_answer(call: Call, body: ErrorBody) -> Answer:
    """Return an error as it goes out."""
    log_url = f"https://dashboard.stripe.com/logs/{call.request_id}"
    document = body.document_v2() if call.is_v2 else body.document(log_url=log_url)
    encoded = json.dumps(document).encode()
    return Answer(status=body.status, body=encoded, headers=dict(body.headers), request_id=call.request_id)
