"""Why a row cannot be sent: the local problems, in the words an operator reads."""

from decimal import Decimal, InvalidOperation

from meterctl.errors import UsageError

DIGITS_MAX = 15
"""Most digits of a value (Stripe changelog 2026-04-22.dahlia, "billing meter event values validation")."""

PLACES_MAX = 12
"""Most decimal places we send; seen as a limit in another project, not confirmed by Stripe."""

LOCAL_PREFIX = "local:"
"""Codes that begin so were decided here: nothing was sent."""

LOCAL_PROBLEMS = {
    "local:no_occurred_at": "has no time of usage",
    "local:no_identifier": "lacks a column of its identifier",
    "local:ambiguous_customer": "has two subscriptions equally new that name different customers",
    "local:no_customer_id": "has a subscription without a Stripe customer id",
    "local:customer_id_too_long": "has a subscription whose Stripe customer id is longer than 100 characters",
    "local:value_missing": "has no quantity",
    "local:value_not_a_number": "has the quantity NaN",
    "local:value_infinite": "has an infinite quantity",
    "local:value_negative": 'has a negative quantity; only a meter with values = "decimal" may send it',
    "local:value_fractional": 'has a fractional quantity; only a meter with values = "decimal" may send it',
    "local:value_too_many_digits": f"has a quantity of more than {DIGITS_MAX} digits",
    "local:value_too_many_places": f"has a quantity of more than {PLACES_MAX} decimal places",
    "local:payload_too_long": "has a text of more than 100 characters for a key of its payload",
    "local:identifier_collision": "would have the identifier of another event",
}
"""Code → what is wrong with the row. Order is precedence; `rows.sql` decides which one holds."""


def formatted(value: Decimal) -> str:
    """Given a finite value, return it without an exponent and without trailing zeros: what Stripe accepts."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def level(text: str) -> Decimal:
    """Given a level as a person writes it, return it. Raises UsageError for what Stripe would not take."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"{text!r} is no number", hint="write it like 12 or 0.5") from None
    if not value.is_finite() or value < 0:
        raise UsageError(f"{text!r} is no level", hint="a level is 0 or more")
    digits = formatted(value).replace(".", "").lstrip("0")
    if len(digits) > DIGITS_MAX or len(formatted(value).partition(".")[2]) > PLACES_MAX:
        raise UsageError(
            f"{text!r} is longer than Stripe takes",
            hint=f"at most {DIGITS_MAX} digits, {PLACES_MAX} of them decimal places",
        )
    return value
