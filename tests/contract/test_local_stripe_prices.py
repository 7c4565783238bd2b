"""Prices of the local Stripe: what links a meter to money, as the real SDK makes and lists them."""

from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe
from stripe_fixtures import MakeSdk


def metered(meter_id: str, **changes: Any) -> Any:
    """The price that docs/stripe-setup.md makes."""
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter_id}
    return {
        "currency": "eur",
        "unit_amount_decimal": "2.5",
        "product_data": {"name": "AI suggestions"},
        "recurring": recurring,
    } | changes


def test_prices_are_found_by_meter_and_activity(local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient) -> None:
    one, other = local_stripe.meters()[0].id, local_stripe.create_meter(event_name="other").id
    made = stripe_sdk.v1.prices.create(metered(one))
    archived = stripe_sdk.v1.prices.create(metered(other, active=False))
    plain = stripe_sdk.v1.prices.create({"currency": "eur", "unit_amount": 900, "product": "prod_known"})

    def ids(params: Any) -> list[str]:
        return [price.id for price in stripe_sdk.v1.prices.list(params).data]

    assert ids({}) == [plain.id, archived.id, made.id]
    assert ids({"active": True, "recurring": {"meter": one}}) == [made.id]
    assert ids({"active": True, "recurring": {"meter": other}}) == []
    assert ids({"active": False, "recurring": {"meter": other}}) == [archived.id]
    assert ids({"type": "one_time"}) == [plain.id]
    assert ids({"recurring": {"usage_type": "metered", "interval": "month"}, "limit": 1}) == [archived.id]


@pytest.mark.parametrize("state", ["unknown", "inactive", "none"])
def test_a_metered_price_has_an_active_meter(
    local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient, state: str
) -> None:
    meter_id = local_stripe.meters()[0].id
    if state == "inactive":
        local_stripe.deactivate_meter(meter_id)
    recurring = {"interval": "month", "usage_type": "metered"}
    recurring |= {"unknown": {"meter": "mtr_nowhere"}, "inactive": {"meter": meter_id}, "none": {}}[state]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stripe_sdk.v1.prices.create(metered(meter_id, recurring=recurring))
    assert (caught.value.http_status, caught.value.param) == (400, "recurring[meter]")
    assert stripe_sdk.v1.prices.list().data == []


@pytest.mark.parametrize(
    "changes", [{"product_data": {}}, {"product": "prod_too"}, {"unit_amount_decimal": "cheap"}, {"colour": "red"}]
)
def test_a_malformed_price_is_refused(
    local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient, changes: dict[str, Any]
) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        stripe_sdk.v1.prices.create(metered(local_stripe.meters()[0].id, **changes))


def test_modes_and_permissions_are_kept_apart(local_stripe: LocalStripe, make_stripe_sdk: MakeSdk) -> None:
    local_stripe.create_price(local_stripe.meters()[0].id)
    assert make_stripe_sdk(local_stripe.api_key_live).v1.prices.list().data == []
    local_stripe.add_key("rk_test_example", allowed=["prices.list"])
    reader = make_stripe_sdk("rk_test_example")
    assert len(reader.v1.prices.list().data) == 1
    with pytest.raises(stripe.PermissionError):
        reader.v1.prices.create(metered("mtr_any"))
