"""Idempotency keys against identifiers: what is replayed, for how long, and what is not stored."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe


def total(server: LocalStripe) -> Decimal:
    return server.totals().get(("ai_suggestion", "cus_known"), Decimal(0))


def headers_of(error: stripe.StripeError) -> Any:
    assert error.headers is not None
    return error.headers


def test_same_key_gets_the_stored_answer(frozen: LocalStripe, report: Any) -> None:
    first = report("one", key="k")
    again = report("one", key="k")
    assert again.last_response.body == first.last_response.body
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert again.last_response.request_id != first.last_response.request_id
    assert total(frozen) == 1
    assert [request.replayed for request in frozen.requests()] == [False, True]


def test_stored_refusal_is_replayed_even_when_the_cause_is_gone(frozen: LocalStripe, report: Any) -> None:
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError, match="No such customer") as caught:
            report("one", customer="cus_late", key="k")
        if not frozen.requests()[-1].replayed:
            frozen.create_customer("cus_late")
    assert headers_of(caught.value)["Idempotent-Replayed"] == "true"
    report("one", customer="cus_late", key="another")


def test_replayed_duplicate_still_says_do_not_retry(report: Any) -> None:
    report("one", key="k1")
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError, match="already exists") as caught:
            report("one", key="k2")
        assert headers_of(caught.value)["stripe-should-retry"] == "false"


@pytest.mark.parametrize(("when", "stored"), [("before", 0), ("after", 1)])
def test_stored_500_is_replayed_and_only_a_new_key_gets_further(
    frozen: LocalStripe, report: Any, when: Any, stored: int
) -> None:
    """The key moves on after any answer heard; the identifier then tells whether the 500 had stored the event."""
    frozen.add_fault(Fault(kind=FaultKind.ERROR_500, when=when))
    for replayed in (None, "true", "true"):
        with pytest.raises(stripe.APIError) as caught:
            report("one", key="one:0")
        assert caught.value.http_status == 500
        assert headers_of(caught.value).get("Idempotent-Replayed") == replayed
    assert len(frozen.events()) == stored
    if stored:
        with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier one"):
            report("one", key="one:1")
    else:
        report("one", key="one:1")
    assert total(frozen) == 1


def test_key_is_forgotten_after_24_hours(frozen: LocalStripe, report: Any) -> None:
    report("one", key="k")
    frozen.clock.advance(timedelta(hours=24) - timedelta(seconds=1))
    assert report("one", key="k").last_response.headers["Idempotent-Replayed"] == "true"
    frozen.clock.advance(timedelta(seconds=1))
    report("one", key="k")
    assert total(frozen) == 2  # the identifier's window is over, too


def test_same_key_with_other_parameters_is_refused(frozen: LocalStripe, report: Any) -> None:
    report("one", key="k")
    with pytest.raises(stripe.IdempotencyError) as caught:
        report("one", "2", key="k")
    assert caught.value.http_status == 400
    assert caught.value.error is not None
    assert caught.value.error.type == "idempotency_error"
    assert total(frozen) == 1


def test_same_key_for_another_call_is_refused(report: Any, stripe_sdk: stripe.StripeClient) -> None:
    report("one", key="k")
    with pytest.raises(stripe.IdempotencyError):
        stripe_sdk.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k"})


def test_same_key_while_the_first_is_running_is_a_conflict(
    frozen: LocalStripe, report: Any, make_stripe_sdk: Any
) -> None:
    """The caller gave up waiting; what it asked for goes on."""
    frozen.add_fault(Fault(kind=FaultKind.SLOW, delay_s=30))
    with pytest.raises(stripe.APIConnectionError):
        report("one", key="k", sdk=make_stripe_sdk(read_timeout_s=0.1))
    with pytest.raises(stripe.APIError) as caught:
        report("one", key="k")
    assert caught.value.error is not None  # the exception's own `code` is always None
    assert (caught.value.http_status, caught.value.error.code) == (409, "idempotency_key_in_use")
    assert total(frozen) == 0


def test_what_failed_before_execution_is_not_stored(frozen: LocalStripe, report: Any) -> None:
    """A bad parameter, 401, 403, 409 and 429 leave the key free."""
    with pytest.raises(stripe.InvalidRequestError):
        report("one", key="k", colour="red")
    for kind in (
        FaultKind.UNAUTHORIZED,
        FaultKind.FORBIDDEN,
        FaultKind.CONFLICT,
        FaultKind.RATE_LIMITED,
        FaultKind.LOCK_TIMEOUT,
    ):
        frozen.add_fault(kind)
        with pytest.raises(stripe.StripeError):
            report("one", key="k")
    assert "Idempotent-Replayed" not in report("one", key="k").last_response.headers
    assert total(frozen) == 1


def test_key_of_a_lost_answer_replays_it(frozen: LocalStripe, report: Any) -> None:
    frozen.add_fault(FaultKind.LOST_ANSWER)
    with pytest.raises(stripe.APIConnectionError):
        report("one", key="k")
    assert report("one", key="k").last_response.headers["Idempotent-Replayed"] == "true"
    assert total(frozen) == 1


def test_key_has_a_length(report: Any) -> None:
    report("one", key="k" * 255)
    with pytest.raises(stripe.InvalidRequestError, match="255 characters"):
        report("two", key="k" * 256)


def test_test_and_live_keys_are_apart(frozen: LocalStripe, report: Any, make_stripe_sdk: Any) -> None:
    frozen.create_customer("cus_known", livemode=True)
    frozen.create_meter(event_name="ai_suggestion", livemode=True)
    report("one", key="k")
    answer = report("one", key="k", sdk=make_stripe_sdk(frozen.api_key_live))
    assert answer.livemode is True
    assert "Idempotent-Replayed" not in answer.last_response.headers
