"""Prices: only what metering needs of one, which is the link from a meter to money."""

from decimal import Decimal
from typing import cast

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import invalid, missing_param, no_such
from meterctl.sandbox.local_stripe.forms import EXPAND, Param, Params
from meterctl.sandbox.local_stripe.model import Json, Price
from meterctl.sandbox.local_stripe.pages import CURSORS, page_of
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

_BOOLEAN = Param(choices=("true", "false"))
_INTERVAL = ("day", "month", "week", "year")
_USAGE_TYPE = Param(choices=("licensed", "metered"))

PRICE_SHAPE = {
    "currency": Param(required=True, length_max=3),
    "active": _BOOLEAN,
    "nickname": Param(),
    "metadata": Param(kind="map", length_max=500),
    "product": Param(),
    "product_data": Param(kind="hash", fields={"name": Param(required=True)}),
    "unit_amount": Param(kind="integer"),
    "unit_amount_decimal": Param(),
    "recurring": Param(
        kind="hash",
        fields={
            "interval": Param(required=True, choices=_INTERVAL),
            "interval_count": Param(kind="integer"),
            "usage_type": _USAGE_TYPE,
            "meter": Param(),
        },
    ),
    "expand": EXPAND,
}

PRICE_LIST_SHAPE = {
    **CURSORS,
    "active": _BOOLEAN,
    "currency": Param(length_max=3),
    "product": Param(),
    "recurring": Param(
        kind="hash", fields={"interval": Param(choices=_INTERVAL), "meter": Param(), "usage_type": _USAGE_TYPE}
    ),
    "type": Param(choices=("one_time", "recurring")),
    "expand": EXPAND,
}


def create_price(books: Books, params: Params, context: Context) -> Price:
    """Add a price; raise the Refusal of a metered one without an active meter. `params` fit PRICE_SHAPE."""
    recurring = forms.strings(params, "recurring")
    _check_meter(books, recurring)
    price = Price(
        id=books.new_id("price_"),
        active=forms.text(params, "active") != "false",
        currency=forms.text(params, "currency") or "",
        product=_product(books, params),
        unit_amount=_unit_amount(params),
        interval=recurring.get("interval"),
        interval_count=int(recurring.get("interval_count", "1")),
        usage_type=recurring.get("usage_type", "licensed"),
        meter_id=recurring.get("meter"),
        nickname=forms.text(params, "nickname"),
        metadata=forms.strings(params, "metadata"),
        livemode=books.livemode,
        created=int(context.now.timestamp()),
    )
    books.prices[price.id] = price
    return price


def _check_meter(books: Books, recurring: dict[str, str]) -> None:
    """Metered prices have a meter since 2025-03-31.basil, and an inactive one cannot be attached to a price."""
    metered, meter_id = recurring.get("usage_type") == "metered", recurring.get("meter")
    if metered != (meter_id is not None):
        raise invalid("A price has a meter exactly if its usage_type is metered.", param="recurring[meter]")
    if meter_id is None:
        return
    if meter_id not in books.meters:
        raise no_such("billing meter", meter_id, param="recurring[meter]")
    if not books.meters[meter_id].active:
        raise invalid("The meter is inactive and cannot be attached to a price.", param="recurring[meter]")


def _product(books: Books, params: Params) -> str:
    product, is_new = forms.text(params, "product"), "product_data" in params
    if (product is not None) == is_new:
        raise invalid("You must specify either product or product_data when creating a price.")
    return product or books.new_id("prod_")


def _unit_amount(params: Params) -> Decimal:
    text = forms.text(params, "unit_amount") or forms.text(params, "unit_amount_decimal")
    if text is None:
        raise missing_param("unit_amount")
    if not text.replace(".", "", 1).isdecimal():
        raise invalid(f"Invalid decimal: {text}", param="unit_amount_decimal")
    return Decimal(text)


def list_prices(books: Books, params: Params) -> Json:
    """Return a page of prices, newest first."""
    documents = [price.document() for price in reversed(books.prices.values())]
    wanted = [document for document in documents if _is_wanted(document, params)]
    return page_of(wanted, params, url="/v1/prices", what="price")


def _is_wanted(document: Json, params: Params) -> bool:
    active = forms.text(params, "active")
    plain = {name: forms.text(params, name) for name in ("currency", "product", "type")}
    recurring = cast("Json", document["recurring"] or {})
    return (
        (active is None or document["active"] == (active == "true"))
        and all(value is None or document[name] == value for name, value in plain.items())
        and all(recurring.get(name) == value for name, value in forms.strings(params, "recurring").items())
    )
