"""What one call to Stripe proves: every kind of answer, heard through the real SDK."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterctl.core.model import MeterEvent, Outcome, OutcomeKind
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from meterctl.settings import load_settings
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents


@pytest.fixture
def events(local_stripe: LocalStripe) -> SingleEvents:
    local_stripe.create_customer("cus_ada")
    environ = {
        "DATABASE_URL": "postgresql://localhost/none",
        "STRIPE_SECRET_KEY": local_stripe.api_key,
        "METERCTL_STRIPE_API_BASE": local_stripe.url,
    }
    settings = load_settings(config_file=None, environ=environ, flags={})
    return SingleEvents(stripe_client(settings.stripe, connections_max=2, read_timeout_s=0.5))


def event(**changes: Any) -> MeterEvent:
    fields: dict[str, Any] = {
        "id": 1,
        "event_name": "ai_suggestion",
        "customer": "cus_ada",
        "identifier": "ws-ada-1",
        "payload": {"stripe_customer_id": "cus_ada", "value": "3"},
        "timestamp": datetime.now(UTC).replace(microsecond=0),
    }
    return MeterEvent(**(fields | changes))


def send(events: SingleEvents, key: str = "ws-ada-1:0", **changes: Any) -> Outcome:
    return events.create(event(**changes), idempotency_key=key)


def test_an_accepted_event_carries_date_mode_and_request_id(events: SingleEvents) -> None:
    outcome = send(events)
    assert (outcome.kind, outcome.heard, outcome.livemode) == (OutcomeKind.ACCEPTED, True, False)
    assert outcome.request_id
    assert outcome.stripe_date is not None
    assert abs(outcome.stripe_date - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_repeated_identifier(events: SingleEvents) -> None:
    send(events)
    outcome = send(events, "ws-ada-1:1")
    assert (outcome.kind, outcome.heard) == (OutcomeKind.ALREADY_EXISTS, True)


def test_the_same_key_hears_the_stored_answer_again(events: SingleEvents, local_stripe: LocalStripe) -> None:
    send(events)
    assert send(events).kind is OutcomeKind.ACCEPTED
    assert len(local_stripe.events()) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"timestamp": datetime(2020, 1, 1, tzinfo=UTC)}, "timestamp_too_far_in_past"),
        ({"payload": {"stripe_customer_id": "cus_nobody", "value": "3"}}, "resource_missing"),
        ({"payload": {"stripe_customer_id": "cus_ada", "value": "1234567890123456"}}, "value_too_many_digits"),
    ],
)
def test_a_400_about_the_event_rejects_it(events: SingleEvents, changes: dict[str, Any], code: str) -> None:
    outcome = send(events, **changes)
    assert (outcome.kind, outcome.code) == (OutcomeKind.REJECTED, code)
    assert outcome.message


def test_no_active_meter_is_a_fault_of_the_meter(events: SingleEvents) -> None:
    assert send(events, event_name="unheard_of").kind is OutcomeKind.METER_UNAVAILABLE


@pytest.mark.parametrize(
    ("fault", "kind", "heard"),
    [
        (Fault(kind=FaultKind.RATE_LIMITED), OutcomeKind.NOT_PROCESSED, True),
        (Fault(kind=FaultKind.LOCK_TIMEOUT), OutcomeKind.NOT_PROCESSED, True),
        (Fault(kind=FaultKind.CONFLICT), OutcomeKind.NOT_PROCESSED, True),
        (Fault(kind=FaultKind.CONFLICT, code="idempotency_key_in_use"), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.UNAUTHORIZED), OutcomeKind.NOT_PERMITTED, True),
        (Fault(kind=FaultKind.FORBIDDEN), OutcomeKind.NOT_PERMITTED, True),
        (Fault(kind=FaultKind.NOT_FOUND), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.REQUEST_TIMEOUT), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.ERROR_500), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.ERROR_500, when="after"), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.HTML), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.HTML, status=200), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.HTML, status=400), OutcomeKind.UNKNOWN, True),
        (Fault(kind=FaultKind.LOST_ANSWER), OutcomeKind.UNKNOWN, False),
        (Fault(kind=FaultKind.RESET), OutcomeKind.UNKNOWN, False),
        (Fault(kind=FaultKind.TIME_OUT), OutcomeKind.UNKNOWN, False),
    ],
    ids=lambda value: f"{value.kind.value}-{value.status}-{value.when}" if isinstance(value, Fault) else None,
)
def test_other_answers(
    events: SingleEvents,
    local_stripe: LocalStripe,
    fault: Fault,
    kind: OutcomeKind,
    heard: bool,  # noqa: FBT001 -- a table
) -> None:
    local_stripe.add_fault(fault)
    outcome = send(events)
    assert (outcome.kind, outcome.heard) == (kind, heard)


def test_an_idempotency_error_leaves_a_doubt(events: SingleEvents) -> None:
    send(events)
    outcome = send(events, payload={"stripe_customer_id": "cus_ada", "value": "4"})
    assert outcome.kind is OutcomeKind.UNKNOWN


def test_a_connection_that_never_came_about_proves_nothing_was_processed(
    events: SingleEvents, local_stripe: LocalStripe
) -> None:
    local_stripe.stop_listening()
    outcome = send(events)
    assert (outcome.kind, outcome.heard, outcome.code) == (OutcomeKind.NOT_PROCESSED, False, "unreachable")
