"""`POST /v1/billing/meter_events`: what Stripe takes and what it refuses. Pure but for the books it writes to."""

import re
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import Refusal, duplicate_identifier, invalid, no_such
from meterctl.sandbox.local_stripe.forms import EXPAND, Param, Params
from meterctl.sandbox.local_stripe.model import Meter, StoredEvent
from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.rejections import CUSTOMER_NOT_FOUND, NO_METER, Findings, Verdict, When
from meterctl.sandbox.local_stripe.store import Books

PAST_LIMIT_S = 35 * 86400
"""Oldest timestamp, in seconds back: rolling seconds rather than calendar days, as a quoted threshold showed."""

FUTURE_LIMIT_S = 5 * 60
"""Newest timestamp, in seconds ahead (OpenAPI)."""

DIGITS_MAX = 15
"""Most digits of a value (changelog 2026-04-22.dahlia)."""

SHAPE = {
    "event_name": Param(required=True, length_max=100),
    "payload": Param(kind="map", required=True, length_max=100),
    "identifier": Param(length_max=100),
    "timestamp": Param(kind="integer"),
    "expand": EXPAND,
}

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


_NO_METER = Meter(
    id="",
    event_name="",
    display_name="",
    formula="sum",
    customer_key="stripe_customer_id",
    value_key="value",
    event_time_window=None,
    livemode=False,
    created=0,
    updated=0,
)
"""Stands for the meter of an event whose name no meter ever had: with the keys that a meter has by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a call brings besides its parameters."""

    now: datetime
    options: StripeOptions
    request_id: str
    idempotency_key: str | None


def create_meter_event(books: Books, params: Params, context: Context) -> StoredEvent:
    """Store the event and return it, or raise the Refusal Stripe would answer. `params` fit SHAPE."""
    options, findings = context.options, Findings()
    meter = _meter(books, forms.text(params, "event_name") or "", findings, options.inactive_meter)
    payload = forms.strings(params, "payload")
    customer = _from_payload(payload, meter.customer_key, "Customer mapping")
    value = _from_payload(payload, meter.value_key, "Value")
    quantity = _quantity(value, meter, findings, options.bad_value)
    timestamp = _timestamp(params, context.now)
    if customer not in books.customers:
        refusal = no_such("customer", customer, param=f"payload[{meter.customer_key}]")
        findings.add(options.unknown_customer, refusal, Verdict(code=CUSTOMER_NOT_FOUND))
    identifier = forms.text(params, "identifier") or str(uuid.uuid4())
    _check_identifier(books, identifier, context)
    verdict = findings.first or books.rejection_script.pick(identifier, customer, meter.event_name)
    event = StoredEvent(
        identifier=identifier,
        customer=customer,
        event_name=meter.event_name,
        meter_id=meter.id,
        value=value,
        quantity=quantity,
        timestamp=timestamp,
        received=context.now,
        payload=payload,
        idempotency_key=context.idempotency_key,
        request_id=context.request_id,
        livemode=books.livemode,
        counted=verdict is None or not verdict.dropped,
    )
    books.put_event(event)
    if verdict is not None:
        books.put_rejection(verdict.of(event), dropped=verdict.dropped)
    return event


def lane_of(books: Books, params: Params) -> tuple[str, str] | None:
    """Return (meter id, customer) of a call, or None where one of them is missing."""
    meter = books.active_meter(forms.text(params, "event_name") or "")
    if meter is None:
        return None
    customer = forms.strings(params, "payload").get(meter.customer_key)
    return None if customer is None else (meter.id, customer)


def parse_quantity(value: str, *, param: str) -> Decimal:
    """Return the number that a payload's text says exactly; raise the Refusal of what is none or too long."""
    if not _NUMBER.fullmatch(value):
        raise invalid(f"The value in the event payload must be a number. Received {value}.", param=param)
    digits = value.removeprefix("-").replace(".", "").lstrip("0")
    if len(digits) > DIGITS_MAX:
        message = f"The value in the event payload can have at most {DIGITS_MAX} digits. Received {value}."
        raise invalid(message, param=param)
    return Decimal(value)


def _meter(books: Books, event_name: str, findings: Findings, when: When) -> Meter:
    """Return the active meter of a name; else one that was, or a stand-in, where that is found out later."""
    active = books.active_meter(event_name)
    if active is not None:
        return active
    archived = books.archived_meter(event_name)
    refusal = invalid(f'No active meter found for event name "{event_name}".', param="event_name")
    findings.add(when, refusal, Verdict(code=NO_METER if archived is None else "archived_meter"))
    return archived or replace(_NO_METER, event_name=event_name)


def _quantity(value: str, meter: Meter, findings: Findings, when: When) -> Decimal:
    try:
        return parse_quantity(value, param=f"payload[{meter.value_key}]")
    except Refusal as refusal:
        code = "meter_event_value_too_many_digits" if _NUMBER.fullmatch(value) else "meter_event_invalid_value"
        findings.add(when, refusal, Verdict(code=code, message=refusal.body.message))
        return Decimal(0)


def _from_payload(payload: dict[str, str], key: str, what: str) -> str:
    value = payload.get(key)
    if not value:
        raise invalid(f"{what} key {key} not found in payload.", param=f"payload[{key}]")
    return value


def _timestamp(params: Params, now: datetime) -> datetime:
    now_s, given_s = int(now.timestamp()), forms.integer(params, "timestamp")
    timestamp_s = now_s if given_s is None else given_s
    _check_timestamp(timestamp_s, now_s=now_s)
    return datetime.fromtimestamp(timestamp_s, UTC)


def _check_timestamp(timestamp_s: int, *, now_s: int) -> None:
    oldest_s, newest_s = now_s - PAST_LIMIT_S, now_s + FUTURE_LIMIT_S
    if timestamp_s < oldest_s:
        message = "The event timestamp cannot be more than 35 days in past."
        raise invalid(f"{message} Expected a timestamp greater than or equal to {oldest_s}.", param="timestamp")
    if timestamp_s > newest_s:
        message = "The event timestamp cannot be more than 5 minutes in future."
        raise invalid(f"{message} Expected a timestamp less than or equal to {newest_s}.", param="timestamp")


def _check_identifier(books: Books, identifier: str, context: Context) -> None:
    stored_at = books.stored_at(identifier)
    window = timedelta(hours=context.options.identifier_window_h)
    if stored_at is not None and context.now < stored_at + window:
        raise duplicate_identifier(identifier)
