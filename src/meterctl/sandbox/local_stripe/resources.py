"""Account, customers and meters: the calls that prepare metering."""

from dataclasses import replace
from typing import Any, cast

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import invalid, no_such
from meterctl.sandbox.local_stripe.forms import EXPAND, Param, Params
from meterctl.sandbox.local_stripe.model import Customer, Json, Meter
from meterctl.sandbox.local_stripe.pages import CURSORS, page_of
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

CUSTOMER_SHAPE = {
    "name": Param(),
    "email": Param(length_max=800),
    "description": Param(),
    "metadata": Param(kind="map", length_max=500),
    "expand": EXPAND,
}

_MAPPING = {"event_payload_key": Param(required=True, length_max=100)}

METER_SHAPE = {
    "display_name": Param(required=True, length_max=250),
    "event_name": Param(required=True, length_max=100),
    "default_aggregation": Param(
        kind="hash", required=True, fields={"formula": Param(required=True, choices=("count", "last", "sum"))}
    ),
    "customer_mapping": Param(kind="hash", fields={**_MAPPING, "type": Param(required=True, choices=("by_id",))}),
    "value_settings": Param(kind="hash", fields=_MAPPING),
    "event_time_window": Param(choices=("day", "hour")),
    "expand": EXPAND,
}

METER_LIST_SHAPE = {**CURSORS, "status": Param(choices=("active", "inactive")), "expand": EXPAND}
RETRIEVE_SHAPE = {"expand": EXPAND}


def account(context: Context) -> Json:
    """Return the account, the same in both modes."""
    return {
        "id": context.options.account_id,
        "object": "account",
        "business_type": "company",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Local Stripe", "timezone": "Etc/UTC"}},
        "type": "standard",
    }


def create_customer(books: Books, params: Params, context: Context, *, customer_id: str | None = None) -> Customer:
    """Add a customer, under a chosen id where the caller has one; raise the Refusal of an id that is taken."""
    if customer_id is not None and customer_id in books.customers:
        raise invalid("Customer already exists.", code="resource_already_exists", param="id")
    customer = Customer(
        id=customer_id or books.new_id("cus_"),
        livemode=books.livemode,
        created=int(context.now.timestamp()),
        name=forms.text(params, "name"),
        email=forms.text(params, "email"),
        description=forms.text(params, "description"),
        metadata=forms.strings(params, "metadata"),
    )
    books.put_customer(customer)
    return customer


def retrieve_customer(books: Books, customer_id: str) -> Customer:
    """Return a customer; raise the 404 of one that is not there."""
    if customer_id not in books.customers:
        raise no_such("customer", customer_id, param="id", status=404)
    return books.customers[customer_id]


def create_meter(books: Books, params: Params, context: Context) -> Meter:
    """Add an active meter; raise the Refusal where its event_name has one already. `params` fit METER_SHAPE."""
    event_name = forms.text(params, "event_name") or ""
    _check_event_name_free(books, event_name)
    created = int(context.now.timestamp())
    mapping, value, aggregation = (
        forms.strings(params, name) for name in ("customer_mapping", "value_settings", "default_aggregation")
    )
    meter = Meter(
        id=books.new_id("mtr_"),
        event_name=event_name,
        display_name=forms.text(params, "display_name") or "",
        formula=cast("Any", aggregation["formula"]),
        customer_key=mapping.get("event_payload_key", "stripe_customer_id"),
        value_key=value.get("event_payload_key", "value"),
        event_time_window=cast("Any", forms.text(params, "event_time_window")),
        livemode=books.livemode,
        created=created,
        updated=created,
    )
    books.put_meter(meter)
    return meter


def retrieve_meter(books: Books, meter_id: str) -> Meter:
    """Return a meter; raise the 404 of one that is not there."""
    if meter_id not in books.meters:
        raise no_such("billing meter", meter_id, param="id", status=404)
    return books.meters[meter_id]


def list_meters(books: Books, params: Params) -> Json:
    """Return a page of meters, newest first."""
    status = forms.text(params, "status")
    meters = [meter for meter in books.meters.values() if status is None or meter.active == (status == "active")]
    documents = [meter.document() for meter in reversed(meters)]
    return page_of(documents, params, url="/v1/billing/meters", what="billing meter")


def deactivate_meter(books: Books, meter_id: str, context: Context) -> Meter:
    """Make a meter refuse events; one that does already is a 400."""
    meter = retrieve_meter(books, meter_id)
    if not meter.active:
        raise invalid("The meter is already inactive.")
    return _switched(books, meter, context, active=False)


def reactivate_meter(books: Books, meter_id: str, context: Context) -> Meter:
    """Make a meter take events again; one that does, or whose event_name another active one has, is a 400."""
    meter = retrieve_meter(books, meter_id)
    if meter.active:
        raise invalid("The meter is already active.")
    _check_event_name_free(books, meter.event_name)
    return _switched(books, meter, context, active=True)


def _switched(books: Books, meter: Meter, context: Context, *, active: bool) -> Meter:
    now_s = int(context.now.timestamp())
    switched = replace(meter, updated=now_s, deactivated_at=None if active else now_s)
    books.put_meter(switched)
    return switched


def _check_event_name_free(books: Books, event_name: str) -> None:
    if books.active_meter(event_name) is not None:
        raise invalid(f"An active meter already exists for event name {event_name}.", param="event_name")
