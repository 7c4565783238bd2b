"""Who may call, how often, and how many at once."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import FaultKind, LocalStripe, StripeOptions
from meterctl.sandbox.local_stripe.limits import TokenBucket

LATENCY_MS = 500


def at_once(report: Any, *calls: dict[str, Any]) -> list[BaseException | None]:
    """Return what each of the calls raised, made from a thread each at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Any]] = [pool.submit(report, **call) for call in calls]
    return [future.exception() for future in futures]


def test_second_call_of_a_customer_and_meter_is_refused_while_the_first_runs(frozen: LocalStripe, report: Any) -> None:
    frozen.set_options(latency_ms=LATENCY_MS)
    errors = [error for error in at_once(report, {"identifier": "a"}, {"identifier": "b"}) if error is not None]
    (error,) = errors
    assert isinstance(error, stripe.RateLimitError)
    assert error.error is not None  # RateLimitError.code is always None
    assert error.error.code == "lock_timeout"
    assert error.headers is not None
    assert error.headers["stripe-should-retry"] == "true"
    assert "Stripe-Rate-Limited-Reason" not in error.headers
    assert len(frozen.events()) == 1


def test_other_customers_and_meters_go_side_by_side(frozen: LocalStripe, report: Any) -> None:
    frozen.create_customer("cus_other")
    frozen.create_meter(event_name="other")
    frozen.set_options(latency_ms=LATENCY_MS)
    assert at_once(report, {}, {"customer": "cus_other"}, {"event_name": "other"}) == [None, None, None]


def test_lane_is_free_again_after_the_answer_and_after_a_lost_one(frozen: LocalStripe, report: Any) -> None:
    frozen.set_options(latency_ms=10)
    report()
    frozen.add_fault(FaultKind.LOST_ANSWER)
    with pytest.raises(stripe.APIConnectionError):
        report()
    report()


def test_concurrency_check_can_be_switched_off(frozen: LocalStripe, report: Any) -> None:
    frozen.set_options(latency_ms=LATENCY_MS, concurrency_check=False)
    assert at_once(report, {}, {}) == [None, None]


def test_concurrent_calls_of_many_customers_are_all_kept(frozen: LocalStripe, report: Any) -> None:
    calls = [{"customer": f"cus_{number}", "identifier": f"id-{number}"} for number in range(40)]
    for call in calls:
        frozen.create_customer(call["customer"])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda call: report(**call), calls))
    assert len(frozen.events()) == 40
    assert set(frozen.totals().values()) == {1}


def test_calls_beyond_the_rate_are_429_with_a_reason(frozen: LocalStripe, report: Any) -> None:
    frozen.set_options(rate_limit_per_s=0.001)
    report()
    with pytest.raises(stripe.RateLimitError) as caught:
        report("refused", key="k")
    assert caught.value.headers is not None
    assert caught.value.headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    frozen.set_options(rate_limit_per_s=None)
    assert "Idempotent-Replayed" not in report("refused", key="k").last_response.headers


def test_bucket_holds_a_second_of_calls_and_fills_by_real_time() -> None:
    now_s = [100.0]
    bucket = TokenBucket(lambda: now_s[0])
    assert [bucket.take(4) for _ in range(5)] == [True] * 4 + [False]
    now_s[0] += 0.5
    assert [bucket.take(4) for _ in range(3)] == [True, True, False]
    now_s[0] += 3600
    assert [bucket.take(4) for _ in range(5)] == [True] * 4 + [False]
    assert all(bucket.take(None) for _ in range(100))


@pytest.mark.parametrize("key", ["sk_wrong_example", "whatever", "pk_test_example"])
def test_keys_of_no_known_kind_are_401(make_stripe_sdk: Any, report: Any, key: str) -> None:
    with pytest.raises(stripe.AuthenticationError) as caught:
        report(sdk=make_stripe_sdk(key))
    assert caught.value.http_status == 401
    assert key not in str(caught.value)


def test_revoked_and_unregistered_keys_are_401(frozen: LocalStripe, make_stripe_sdk: Any, report: Any) -> None:
    report(sdk=make_stripe_sdk("rk_test_anyone"))
    frozen.revoke_key("rk_test_anyone")
    frozen.set_options(accept_any_key=False)
    frozen.add_key("sk_test_registered")
    report(sdk=make_stripe_sdk("sk_test_registered"))
    for key in ("rk_test_anyone", "sk_test_stranger"):
        with pytest.raises(stripe.AuthenticationError):
            report(sdk=make_stripe_sdk(key))


def test_restricted_key_gets_403_for_what_it_may_not(frozen: LocalStripe, make_stripe_sdk: Any, report: Any) -> None:
    frozen.add_key("rk_test_reader", allowed=["meters.*", "account.retrieve"])
    reader = make_stripe_sdk("rk_test_reader")
    assert [meter.event_name for meter in reader.v1.billing.meters.list().data] == ["ai_suggestion"]
    with pytest.raises(stripe.PermissionError) as caught:
        report("one", sdk=reader, key="k")
    assert caught.value.http_status == 403
    assert "rk_test_reader" not in str(caught.value)
    assert not frozen.events()


def test_account_is_the_same_in_both_modes(frozen: LocalStripe, make_stripe_sdk: Any) -> None:
    for key in (frozen.api_key, frozen.api_key_live):
        assert make_stripe_sdk(key).v1.accounts.retrieve_current().id == frozen.account_id


def test_account_id_is_an_option() -> None:
    with LocalStripe(options=StripeOptions(account_id="acct_other")) as server:
        assert server.account_id == "acct_other"


def test_modes_hold_separate_data(frozen: LocalStripe, make_stripe_sdk: Any, report: Any) -> None:
    live = make_stripe_sdk(frozen.api_key_live)
    with pytest.raises(stripe.InvalidRequestError, match="No active meter found"):
        report(sdk=live)
    live.v1.billing.meters.create(
        {"display_name": "AI", "event_name": "ai_suggestion", "default_aggregation": {"formula": "sum"}}
    )
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        report(sdk=live)
    customer = live.v1.customers.create({"name": "Ada"})
    assert customer.livemode is True
    assert report("same", customer=customer.id, sdk=live).livemode is True
    assert report("same").livemode is False
    assert [len(frozen.events(livemode=mode)) for mode in (False, True)] == [1, 1]


def test_customers_and_meters_can_be_retrieved(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> None:
    assert stripe_sdk.v1.customers.retrieve("cus_known").livemode is False
    created = stripe_sdk.v1.customers.create({"name": "Ada", "email": "ada@example.com", "metadata": {"plan": "pro"}})
    assert stripe_sdk.v1.customers.retrieve(created.id).name == "Ada"
    (meter,) = frozen.meters()
    assert stripe_sdk.v1.billing.meters.retrieve(meter.id).default_aggregation.formula == "sum"
    for call in (stripe_sdk.v1.customers.retrieve, stripe_sdk.v1.billing.meters.retrieve):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            call("nothing_there")
        assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_meters_are_listed_by_status_and_page(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> None:
    for number in range(4):
        frozen.create_meter(event_name=f"meter_{number}")
    frozen.deactivate_meter(frozen.meters()[-1].id)
    names = [meter.event_name for meter in stripe_sdk.v1.billing.meters.list({"limit": 2}).auto_paging_iter()]
    assert names == ["meter_3", "meter_2", "meter_1", "meter_0", "ai_suggestion"]
    (inactive,) = stripe_sdk.v1.billing.meters.list({"status": "inactive"}).data
    assert inactive.event_name == "meter_3"
    assert inactive.status_transitions.deactivated_at is not None


def test_an_event_name_has_one_active_meter(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        stripe_sdk.v1.billing.meters.create(
            {"display_name": "again", "event_name": "ai_suggestion", "default_aggregation": {"formula": "count"}}
        )
    with pytest.raises(ValueError, match="already exists"):
        frozen.create_meter(event_name="ai_suggestion")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"default_aggregation": {"formula": "max"}}, "default_aggregation[formula]"),
        ({"default_aggregation": {}}, "default_aggregation"),
        ({"event_time_window": "week"}, "event_time_window"),
        ({"customer_mapping": {"type": "by_id"}}, "customer_mapping[event_payload_key]"),
        ({"display_name": "x" * 251}, "display_name"),
        ({"unit": "kWh"}, "unit"),
    ],
)
def test_meter_parameters_are_checked(stripe_sdk: stripe.StripeClient, changes: Any, param: str) -> None:
    params: Any = {"display_name": "m", "event_name": "m", "default_aggregation": {"formula": "sum"}, **changes}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stripe_sdk.v1.billing.meters.create(params)
    assert caught.value.param == param


def test_unknown_path_is_404(stripe_sdk: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stripe_sdk.v1.products.list()
    assert caught.value.http_status == 404
