"""What the local Stripe keeps, as values. `document()` is what the API shows, `record()` what `/_sandbox` shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

Json = dict[str, object]

Formula = Literal["sum", "count", "last"]
Window = Literal["hour", "day"]

WINDOW_S: Mapping[str, int] = {"hour": 3600, "day": 86400}
"""Length in seconds; both are aligned to UTC because 1970 began at midnight."""


def iso(instant: datetime) -> str:
    """Return an aware UTC instant as RFC 3339 with a Z."""
    return instant.isoformat().replace("+00:00", "Z")


def iso_ms(instant: datetime) -> str:
    """Return it as Stripe's v2 writes instants: always with milliseconds."""
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Customer:
    """A customer: only what metering needs of one."""

    id: str
    livemode: bool
    created: int
    name: str | None = None
    email: str | None = None
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> Json:
        """Return the API's customer object."""
        return {
            "id": self.id,
            "object": "customer",
            "balance": 0,
            "created": self.created,
            "currency": None,
            "delinquent": False,
            "description": self.description,
            "email": self.email,
            "livemode": self.livemode,
            "metadata": dict(self.metadata),
            "name": self.name,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """A billing meter. `created`, `updated`, `deactivated_at` are unix seconds."""

    id: str
    event_name: str
    display_name: str
    formula: Formula
    customer_key: str
    value_key: str
    event_time_window: Window | None
    livemode: bool
    created: int
    updated: int
    deactivated_at: int | None = None

    @property
    def active(self) -> bool:
        """Whether it takes events."""
        return self.deactivated_at is None

    def document(self) -> Json:
        """Return the API's meter object (OpenAPI `billing.meter`)."""
        return {
            "id": self.id,
            "object": "billing.meter",
            "created": self.created,
            "customer_mapping": {"event_payload_key": self.customer_key, "type": "by_id"},
            "default_aggregation": {"formula": self.formula},
            "display_name": self.display_name,
            "event_name": self.event_name,
            "event_time_window": self.event_time_window,
            "livemode": self.livemode,
            "status": "active" if self.active else "inactive",
            "status_transitions": {"deactivated_at": self.deactivated_at},
            "updated": self.updated,
            "value_settings": {"event_payload_key": self.value_key},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """A price; `interval` None is a one-time one. `unit_amount` is in the currency's smallest unit."""

    id: str
    active: bool
    currency: str
    product: str
    unit_amount: Decimal
    interval: str | None
    interval_count: int
    usage_type: str
    meter_id: str | None
    livemode: bool
    created: int
    nickname: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> Json:
        """Return the API's price object (OpenAPI `price`)."""
        whole = self.unit_amount == self.unit_amount.to_integral_value()
        return {
            "id": self.id,
            "object": "price",
            "active": self.active,
            "billing_scheme": "per_unit",
            "created": self.created,
            "currency": self.currency,
            "custom_unit_amount": None,
            "livemode": self.livemode,
            "lookup_key": None,
            "metadata": dict(self.metadata),
            "nickname": self.nickname,
            "product": self.product,
            "recurring": self._recurring(),
            "tax_behavior": "unspecified",
            "tiers_mode": None,
            "transform_quantity": None,
            "type": "one_time" if self.interval is None else "recurring",
            "unit_amount": int(self.unit_amount) if whole else None,
            "unit_amount_decimal": f"{self.unit_amount:f}",
        }

    def _recurring(self) -> Json | None:
        if self.interval is None:
            return None
        return {
            "interval": self.interval,
            "interval_count": self.interval_count,
            "meter": self.meter_id,
            "usage_type": self.usage_type,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEvent:
    """A meter event that was answered with 200.

    `value` is the text as it came, `quantity` exactly that number (0 of what is none). `meter_id` is "" where no meter
    has the name. `counted` is whether it counts in totals: not if it was found invalid afterwards, nor if a newer event
    of its window replaced it on a meter with `event_time_window`.
    """

    identifier: str
    customer: str
    event_name: str
    meter_id: str
    value: str
    quantity: Decimal
    timestamp: datetime
    received: datetime
    payload: Mapping[str, str]
    idempotency_key: str | None
    request_id: str
    livemode: bool
    counted: bool = True

    def document(self) -> Json:
        """Return the API's answer (OpenAPI `billing.meter_event`)."""
        return {
            "object": "billing.meter_event",
            "created": int(self.received.timestamp()),
            "event_name": self.event_name,
            "identifier": self.identifier,
            "livemode": self.livemode,
            "payload": dict(self.payload),
            "timestamp": int(self.timestamp.timestamp()),
        }

    def record(self) -> Json:
        """Return everything stored, quantities as text."""
        return {
            "identifier": self.identifier,
            "customer": self.customer,
            "event_name": self.event_name,
            "meter_id": self.meter_id,
            "value": self.value,
            "timestamp": iso(self.timestamp),
            "received": iso(self.received),
            "payload": dict(self.payload),
            "idempotency_key": self.idempotency_key,
            "request_id": self.request_id,
            "livemode": self.livemode,
            "counted": self.counted,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRequest:
    """One request and how it ended. `status` is None where no answer was sent; `fault` the scripted one, if any."""

    sequence: int
    at: datetime
    method: str
    path: str
    operation: str
    status: int | None
    request_id: str
    idempotency_key: str | None
    identifier: str | None
    livemode: bool | None
    fault: str | None
    replayed: bool

    def record(self) -> Json:
        """Return it as JSON."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        return {**shown, "at": iso(self.at)}
