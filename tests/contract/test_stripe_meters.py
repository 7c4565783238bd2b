"""Stripe's meters and prices as `StripeMeters` reads them over the real SDK."""

import stripe

from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.stripe_api.meters import StripeMeters


def test_all_pages_are_read_and_deactivated_meters_too(
    local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient
) -> None:
    names = ["ai_suggestion", *(f"meter_{n}" for n in range(120))]
    for name in names[1:]:
        local_stripe.create_meter(event_name=name)
    local_stripe.deactivate_meter(local_stripe.meters()[7].id)
    found = StripeMeters(stripe_sdk).meters()
    assert sorted(one.event_name for one in found) == sorted(names)
    assert [one.event_name for one in found if not one.active] == ["meter_6"]
    assert len(local_stripe.requests("meters.list")) == 2


def test_a_price_counts_for_its_own_meter_while_it_is_active(
    local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient
) -> None:
    one, other = local_stripe.meters()[0].id, local_stripe.create_meter(event_name="other").id
    local_stripe.create_price(one)
    local_stripe.create_price(other, active=False)
    catalog = StripeMeters(stripe_sdk)
    assert (catalog.is_priced(one), catalog.is_priced(other)) == (True, False)
