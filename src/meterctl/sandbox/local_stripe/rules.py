"""`POST /v1/billing/meter_events`: what Stripe takes and what it refuses. Pure but for the books it writes to."""

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import duplicate_identifier, invalid, no_such
from meterctl.sandbox.local_stripe.forms import EXPAND, Param, Params
from meterctl.sandbox.local_stripe.model import AsyncRejection, Meter, StoredEvent
from meterctl.sandbox.local_stripe.options import StripeOptions
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a call brings besides its parameters."""

    now: datetime
    options: StripeOptions
    request_id: str
    idempotency_key: str | None


def create_meter_event(books: Books, params: Params, context: Context) -> StoredEvent:
    """Store the event and return it, or raise the Refusal Stripe would answer. `params` fit SHAPE."""
    meter = _active_meter(books, forms.text(params, "event_name") or "")
    payload = forms.strings(params, "payload")
    customer = _from_payload(payload, meter.customer_key, "Customer mapping")
    value = _from_payload(payload, meter.value_key, "Value")
    quantity = parse_quantity(value, param=f"payload[{meter.value_key}]")
    received_s = int(context.now.timestamp())
    timestamp_s = forms.integer(params, "timestamp")
    timestamp_s = received_s if timestamp_s is None else timestamp_s
    _check_timestamp(timestamp_s, now_s=received_s)
    known = customer in books.customers
    if not known and context.options.unknown_customer == "now":
        raise no_such("customer", customer, param=f"payload[{meter.customer_key}]")
    identifier = forms.text(params, "identifier") or str(uuid.uuid4())
    _check_identifier(books, identifier, context)
    event = StoredEvent(
        identifier=identifier,
        customer=customer,
        event_name=meter.event_name,
        meter_id=meter.id,
        value=value,
        quantity=quantity,
        timestamp=datetime.fromtimestamp(timestamp_s, UTC),
        received=context.now,
        payload=payload,
        idempotency_key=context.idempotency_key,
        request_id=context.request_id,
        livemode=books.livemode,
        counted=known,
    )
    books.put_event(event)
    if not known:
        books.rejections.append(_customer_not_found(event))
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


def _active_meter(books: Books, event_name: str) -> Meter:
    meter = books.active_meter(event_name)
    if meter is None:
        raise invalid(f'No active meter found for event name "{event_name}".', param="event_name")
    return meter


def _from_payload(payload: dict[str, str], key: str, what: str) -> str:
    value = payload.get(key)
    if not value:
        raise invalid(f"{what} key {key} not found in payload.", param=f"payload[{key}]")
    return value


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


def _customer_not_found(event: StoredEvent) -> AsyncRejection:
    return AsyncRejection(
        code="meter_event_customer_not_found",
        message=f"No customer was found matching {event.customer}.",
        identifier=event.identifier,
        event_name=event.event_name,
        customer=event.customer,
        received=event.received,
        livemode=event.livemode,
    )
