"""One event a call over v1, and what an answer proves. Outcomes are values: nothing raises for what Stripe does."""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import stripe

from meterctl.core.model import MeterEvent, Outcome, OutcomeKind
from meterctl.stripe_api.date import answered_at
from meterctl.stripe_api.http import NEVER_CONNECTED

if TYPE_CHECKING:
    from stripe.params.billing import MeterEventCreateParams

ALREADY_EXISTS = "already exists with identifier"
"""Stripe's words for a repeated identifier: HTTP 400 without a code (seen in several public code bases)."""

MESSAGE_LENGTH_MAX = 1_000
"""Characters of an answer's message that are kept: a proxy's error page has millions."""

METER_MISSING = "No active meter found"
METER_MISSING_CODES = frozenset({"no_meter", "archived_meter"})

MESSAGE_CODES = {
    "cannot be more than 35 days in past": "timestamp_too_far_in_past",
    "No such customer": "customer_not_found",
    "payload can have at most": "value_too_many_digits",
}
"""Words of a 400 that has no code → the code the ledger shows for it."""

_VISIBLE = re.compile(r"[!-~]+")
"""What an HTTP header carries unchanged: printable ASCII without blanks."""


class SingleEvents:
    """`MeterEvents` over `POST /v1/billing/meter_events`."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._create = client.v1.billing.meter_events.create

    def create(self, event: MeterEvent, *, idempotency_key: str) -> Outcome:
        """Send the event once and say what came of it."""
        params: MeterEventCreateParams = {
            "event_name": event.event_name,
            "payload": dict(event.payload),
            "identifier": event.identifier,
            "timestamp": int(event.timestamp.timestamp()),
        }
        try:
            answer = self._create(params, {"idempotency_key": _header_safe(idempotency_key), "max_network_retries": 0})
        except stripe.APIConnectionError as error:
            return _unanswered(error)
        except stripe.StripeError as error:
            return _refused(error, event)
        except Exception as error:  # noqa: BLE001 -- whatever breaks after the call began leaves its fate unknown
            return Outcome(kind=OutcomeKind.UNKNOWN, code="client_error", message=f"{type(error).__name__}: {error}")
        try:
            return _accepted(answer, event)
        except Exception:  # noqa: BLE001 -- anybody between us and Stripe can say 200, with any JSON
            return Outcome(kind=OutcomeKind.UNKNOWN, heard=True, code="foreign_answer", message="not a meter event")


def _header_safe(key: str) -> str:
    """Return the key as a header can carry it: one made of a user's name in another script goes as its hash."""
    return key if _VISIBLE.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()


def _accepted(answer: stripe.billing.MeterEvent, event: MeterEvent) -> Outcome:
    """A 2xx counts only if it is about our event: anybody between us and Stripe can say 200."""
    response = cast("Any", answer).last_response
    about_ours = getattr(answer, "object", None) == "billing.meter_event" and answer.identifier == event.identifier
    return Outcome(
        kind=OutcomeKind.ACCEPTED if about_ours else OutcomeKind.UNKNOWN,
        heard=True,
        status=response.code,
        code=None if about_ours else "foreign_answer",
        message=None if about_ours else "the answer is not about this event",
        request_id=response.request_id,
        stripe_date=answered_at(response.headers),
        livemode=getattr(answer, "livemode", None) if about_ours else None,
    )


def _unanswered(error: stripe.APIConnectionError) -> Outcome:
    """Only a connection that never came about proves that nothing was processed."""
    cause = error.__cause__
    never = isinstance(cause, NEVER_CONNECTED)
    return Outcome(
        kind=OutcomeKind.NOT_PROCESSED if never else OutcomeKind.UNKNOWN,
        code="unreachable" if never else "no_answer",
        message=f"{type(cause).__name__}: no connection to Stripe" if never else "no answer arrived",
    )


def _refused(error: stripe.StripeError, event: MeterEvent) -> Outcome:
    body = error.json_body if isinstance(error.json_body, Mapping) else {}
    details = body.get("error")
    details = details if isinstance(details, Mapping) else {}
    message = str(details.get("message") or error.user_message or f"HTTP {error.http_status}")[:MESSAGE_LENGTH_MAX]
    return Outcome(
        kind=_kind(error.http_status, details, message, event.identifier),
        heard=error.http_status is not None,
        status=error.http_status,
        code=_code(error.http_status, details, message),
        message=message,
        request_id=error.request_id,
        stripe_date=answered_at(error.headers),
    )


def _kind(status: int | None, details: Mapping[str, Any], message: str, identifier: str) -> OutcomeKind:
    """What an error answer proves about its own attempt (design: an answer proves nothing about an earlier one)."""
    if status in {401, 403}:
        return OutcomeKind.NOT_PERMITTED
    if status == 429 or (status == 409 and details.get("code") != "idempotency_key_in_use"):  # noqa: PLR2004 -- HTTP's own numbers
        return OutcomeKind.NOT_PROCESSED
    if status != 400 or details.get("type") != "invalid_request_error":  # noqa: PLR2004 -- HTTP's own number
        return OutcomeKind.UNKNOWN
    if ALREADY_EXISTS in message and identifier in message:
        return OutcomeKind.ALREADY_EXISTS
    if METER_MISSING in message or details.get("code") in METER_MISSING_CODES:
        return OutcomeKind.METER_UNAVAILABLE
    return OutcomeKind.REJECTED


def _code(status: int | None, details: Mapping[str, Any], message: str) -> str:
    known = next((code for words, code in MESSAGE_CODES.items() if words in message), None)
    return str(details.get("code") or known or details.get("type") or f"http_{status}")
