"""A subscription, an invoice of it, a checkout that began it: the objects that their events carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from meterctl.sandbox.local_stripe.model import Json, Price

MONTHLY_FEE = 2000
"""What the plan costs a month, in cents: a price of its own beside the metered ones."""

_SELF = {"type": "self"}
_NO_TAX = {"enabled": False, "liability": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscription:
    """A subscription of one item."""

    id: str
    item_id: str
    customer: str
    status: str
    created: datetime
    start_date: datetime
    period_start: datetime
    period_end: datetime
    ended_at: datetime | None
    metadata: Mapping[str, str]
    livemode: bool

    def document(self, *, before_basil: bool) -> Json:
        """Return the API's subscription. Since 2025-03-31.basil its period stands on the item."""
        period: Json = {"current_period_end": _s(self.period_end), "current_period_start": _s(self.period_start)}
        ended_at = None if self.ended_at is None else _s(self.ended_at)
        return {
            "id": self.id,
            "object": "subscription",
            "automatic_tax": {"disabled_reason": None, **_NO_TAX},
            "billing_cycle_anchor": _s(self.start_date),
            "billing_mode": {"flexible": None, "type": "classic"},
            "billing_schedules": [],
            "cancel_at": None,
            "cancel_at_period_end": False,
            "canceled_at": ended_at,
            "collection_method": "charge_automatically",
            "created": _s(self.created),
            "currency": "usd",
            **(period if before_basil else {}),
            "customer": self.customer,
            "discounts": [],
            "ended_at": ended_at,
            "invoice_settings": {"account_tax_ids": None, "issuer": _SELF},
            "items": _list(
                [self._item({} if before_basil else period)], f"/v1/subscription_items?subscription={self.id}"
            ),
            "latest_invoice": None,
            "livemode": self.livemode,
            "metadata": dict(self.metadata),
            "start_date": _s(self.start_date),
            "status": self.status,
            "test_clock": None,
            "trial_end": None,
            "trial_start": None,
        }

    def _item(self, period: Json) -> Json:
        return {
            "id": self.item_id,
            "object": "subscription_item",
            "billing_thresholds": None,
            "created": _s(self.created),
            **period,
            "discounts": [],
            "metadata": {},
            "price": self._price().document(),
            "quantity": 1,
            "subscription": self.id,
            "tax_rates": [],
        }

    def _price(self) -> Price:
        return Price(
            id="price_sandboxplan",
            active=True,
            currency="usd",
            product="prod_sandboxplan",
            unit_amount=Decimal(MONTHLY_FEE),
            interval="month",
            interval_count=1,
            usage_type="licensed",
            meter_id=None,
            livemode=self.livemode,
            created=_s(self.created),
        )


def invoice_document(invoice_id: str, subscription: Subscription, now: datetime, *, before_basil: bool) -> Json:
    """Return an open invoice of the subscription's period whose first payment has failed."""
    details = {"metadata": dict(subscription.metadata), "subscription": subscription.id}
    parent = {"quote_details": None, "subscription_details": details, "type": "subscription_details"}
    of_subscription: Json = {"subscription": subscription.id} if before_basil else {"parent": parent}
    return {
        "id": invoice_id,
        "object": "invoice",
        "amount_due": MONTHLY_FEE,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": MONTHLY_FEE,
        "amount_shipping": 0,
        "attempt_count": 1,
        "attempted": True,
        "auto_advance": True,
        "automatic_tax": {"disabled_reason": None, **_NO_TAX, "provider": None, "status": None},
        "billing_reason": "subscription_cycle",
        "collection_method": "charge_automatically",
        "created": _s(now),
        "currency": "usd",
        "customer": subscription.customer,
        "default_tax_rates": [],
        "discounts": [],
        "issuer": _SELF,
        "lines": _list([], f"/v1/invoices/{invoice_id}/lines"),
        "livemode": subscription.livemode,
        "metadata": {},
        **of_subscription,
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": _s(subscription.period_end),
        "period_start": _s(subscription.period_start),
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "open",
        "status_transitions": {
            "finalized_at": _s(now),
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": MONTHLY_FEE,
        "total": MONTHLY_FEE,
    }


def checkout_document(
    session_id: str,
    subscription: Subscription,
    now: datetime,
    *,
    client_reference_id: str | None,
    metadata: Mapping[str, str],
) -> Json:
    """Return a paid checkout session that led to the subscription."""
    return {
        "id": session_id,
        "object": "checkout.session",
        "amount_subtotal": MONTHLY_FEE,
        "amount_total": MONTHLY_FEE,
        "automatic_tax": {**_NO_TAX, "provider": None, "status": None},
        "cancel_url": None,
        "client_reference_id": client_reference_id,
        "created": _s(now),
        "currency": "usd",
        "custom_fields": [],
        "customer": subscription.customer,
        "customer_details": None,
        "customer_email": None,
        "expires_at": _s(now) + 86400,
        "invoice": None,
        "livemode": subscription.livemode,
        "metadata": dict(metadata),
        "mode": "subscription",
        "payment_intent": None,
        "payment_method_types": ["card"],
        "payment_status": "paid",
        "shipping_options": [],
        "status": "complete",
        "subscription": subscription.id,
        "success_url": "https://example.com/welcome",
        "ui_mode": "hosted",
        "url": None,
    }


def _list(data: list[Json], url: str) -> Json:
    return {"object": "list", "data": data, "has_more": False, "url": url}


def _s(instant: datetime) -> int:
    return int(instant.timestamp())
