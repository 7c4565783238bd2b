"""A request as it was read: what it asks for and which key it goes by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import Refusal, invalid
from meterctl.sandbox.local_stripe.faults import Subject
from meterctl.sandbox.local_stripe.forms import Params
from meterctl.sandbox.local_stripe.routes import Operation, find

IDEMPOTENCY_KEY_LENGTH_MAX = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request as it was read, numbered on arrival. `form` is the body of a POST, the query of a GET."""

    method: str
    path: str
    form: str
    authorization: str | None
    idempotency_key: str | None
    version: str | None
    request_id: str
    sequence: int
    operation: Operation | None
    object_id: str
    params: Params
    malformed: Refusal | None = None

    @property
    def operation_name(self) -> str:
        """The operation's name, "unknown" where the path is none of ours."""
        return self.operation.name if self.operation else "unknown"

    @property
    def is_v2(self) -> bool:
        """Whether it is a call of v2, which has rules and error shapes of its own."""
        return self.path.startswith("/v2/")

    @property
    def identifier(self) -> str | None:
        """The meter event's identifier, if any."""
        return forms.text(self.params, "identifier")

    def fingerprint(self) -> bytes:
        """Return what two requests under one idempotency key must have in common: method, path, parameters."""
        told = f"{self.method} {self.path} {json.dumps(self.params, sort_keys=True)}"
        return hashlib.blake2b(told.encode(), digest_size=16).digest()

    def subject(self) -> Subject:
        """Return what faults match on."""
        customer = forms.text(self.params, "customer")
        payload = forms.strings(self.params, "payload").values()
        return Subject(
            operation=self.operation_name,
            identifier=self.identifier,
            event_name=forms.text(self.params, "event_name"),
            customers=frozenset((*payload, customer) if customer else payload),
        )


def read_call(method: str, path: str, form: str, headers: Mapping[str, str], sequence: int) -> Call:
    """Given a request as it came in and its number, return it read; what cannot be read is told when it is admitted."""
    found = find(method, path)
    params, malformed = _parsed(form)
    return Call(
        method=method,
        path=path,
        form=form,
        authorization=headers.get("Authorization"),
        idempotency_key=headers.get("Idempotency-Key"),
        version=headers.get("Stripe-Version"),
        request_id=f"req_sandbox{sequence:08}",
        sequence=sequence,
        operation=None if found is None else found[0],
        object_id="" if found is None else found[1],
        params=params,
        malformed=malformed,
    )


def _parsed(form: str) -> tuple[Params, Refusal | None]:
    try:
        return forms.parse(form), None
    except Refusal as refusal:
        return {}, refusal


def key_of(call: Call) -> str | None:
    """Return the idempotency key that a call goes by, None for none; raise the Refusal of one that is too long."""
    if call.method != "POST" or not call.idempotency_key:
        return None
    if len(call.idempotency_key) > IDEMPOTENCY_KEY_LENGTH_MAX:
        raise invalid(f"Idempotency keys may be at most {IDEMPOTENCY_KEY_LENGTH_MAX} characters long.")
    return call.idempotency_key
