"""Every fault as the SDK sees it, and how faults are addressed."""

import http.client
import time
from decimal import Decimal
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe, RandomFaults


def total(server: LocalStripe) -> Decimal:
    return server.totals().get(("ai_suggestion", "cus_known"), Decimal(0))


@pytest.mark.parametrize(
    ("fault", "raised", "status", "stored"),
    [
        (Fault(kind=FaultKind.LOST_ANSWER), stripe.APIConnectionError, None, 1),
        (Fault(kind=FaultKind.RESET), stripe.APIConnectionError, None, 0),
        (Fault(kind=FaultKind.ERROR_500), stripe.APIError, 500, 0),
        (Fault(kind=FaultKind.ERROR_500, when="after"), stripe.APIError, 500, 1),
        (Fault(kind=FaultKind.ERROR_500, status=503), stripe.APIError, 503, 0),
        (Fault(kind=FaultKind.BAD_REQUEST, message="No."), stripe.InvalidRequestError, 400, 0),
        (Fault(kind=FaultKind.HTML), stripe.APIError, 502, 0),
        (Fault(kind=FaultKind.HTML, when="after"), stripe.APIError, 502, 1),
        (Fault(kind=FaultKind.HTML, status=200), stripe.APIError, 200, 0),
        (Fault(kind=FaultKind.RATE_LIMITED), stripe.RateLimitError, 429, 0),
        (Fault(kind=FaultKind.LOCK_TIMEOUT), stripe.RateLimitError, 429, 0),
        (Fault(kind=FaultKind.UNAUTHORIZED), stripe.AuthenticationError, 401, 0),
        (Fault(kind=FaultKind.FORBIDDEN), stripe.PermissionError, 403, 0),
        (Fault(kind=FaultKind.NOT_FOUND), stripe.InvalidRequestError, 404, 0),
        (Fault(kind=FaultKind.REQUEST_TIMEOUT), stripe.APIError, 408, 0),
        (Fault(kind=FaultKind.CONFLICT), stripe.APIError, 409, 0),
    ],
    ids=lambda value: f"{value.kind}-{value.when}-{value.status}" if isinstance(value, Fault) else None,
)
def test_fault_as_the_sdk_sees_it(
    frozen: LocalStripe, report: Any, fault: Fault, raised: type[stripe.StripeError], status: int | None, stored: int
) -> None:
    frozen.add_fault(fault)
    with pytest.raises(stripe.StripeError) as caught:
        report("one")
    assert (type(caught.value), caught.value.http_status) == (raised, status)
    assert total(frozen) == stored
    logged = frozen.requests()[-1]
    assert (logged.fault, logged.status) == (fault.kind.value, status)
    report("two")
    assert total(frozen) == stored + 1


@pytest.mark.parametrize(("when", "stored"), [("before", 0), ("after", 1)])
def test_time_out_keeps_the_client_waiting(
    frozen: LocalStripe, report: Any, make_stripe_sdk: Any, when: Any, stored: int
) -> None:
    """Others are served meanwhile, and the lane is not held."""
    frozen.add_fault(Fault(kind=FaultKind.TIME_OUT, when=when))
    started = time.monotonic()
    with pytest.raises(stripe.APIConnectionError) as caught:
        report("one", sdk=make_stripe_sdk(read_timeout_s=0.2))
    assert caught.value.http_status is None
    assert time.monotonic() - started < 2
    assert total(frozen) == stored
    report("two")


def test_slow_call_is_executed_in_the_end_even_if_nobody_waits(
    frozen: LocalStripe, report: Any, make_stripe_sdk: Any
) -> None:
    frozen.add_fault(Fault(kind=FaultKind.SLOW, delay_s=0.8))
    with pytest.raises(stripe.APIConnectionError):
        report("one", sdk=make_stripe_sdk(read_timeout_s=0.1))
    assert total(frozen) == 0
    with pytest.raises(stripe.RateLimitError):  # the first still holds the lane
        report("one")
    deadline = time.monotonic() + 5
    while not frozen.events() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert total(frozen) == 1


def test_slow_call_does_not_hold_up_others(frozen: LocalStripe, report: Any, make_stripe_sdk: Any) -> None:
    frozen.create_customer("cus_slow")
    frozen.add_fault(Fault(kind=FaultKind.SLOW, delay_s=5, customer="cus_slow"))
    with pytest.raises(stripe.APIConnectionError):
        report(customer="cus_slow", sdk=make_stripe_sdk(read_timeout_s=0.05))
    started = time.monotonic()
    report()
    assert time.monotonic() - started < 1


def test_many_mute_connections_do_not_hold_up_others(frozen: LocalStripe, report: Any) -> None:
    frozen.add_fault(Fault(kind=FaultKind.TIME_OUT, times=50, operation="account.retrieve"))
    connections = [http.client.HTTPConnection(frozen.url.removeprefix("http://")) for _ in range(50)]
    for connection in connections:
        connection.request("GET", "/v1/account", headers={"Authorization": f"Bearer {frozen.api_key}"})
    started = time.monotonic()
    for _ in range(20):
        report()
    assert time.monotonic() - started < 1
    for connection in connections:
        connection.close()


def test_faults_strike_by_position_from_when_they_are_added(frozen: LocalStripe, report: Any) -> None:
    report("0")
    frozen.add_fault(Fault(kind=FaultKind.RATE_LIMITED, nth=2, times=2))
    outcomes = []
    for number in range(1, 6):
        try:
            report(str(number))
            outcomes.append("ok")
        except stripe.RateLimitError:
            outcomes.append("429")
    assert outcomes == ["ok", "429", "429", "ok", "ok"]


def test_faults_strike_by_identifier_customer_and_event_name(frozen: LocalStripe, report: Any) -> None:
    frozen.create_customer("cus_other")
    frozen.create_meter(event_name="other")
    frozen.add_fault(Fault(kind=FaultKind.BAD_REQUEST, identifier="x", nth=2))
    frozen.add_fault(Fault(kind=FaultKind.FORBIDDEN, customer="cus_other"))
    frozen.add_fault(Fault(kind=FaultKind.NOT_FOUND, event_name="other", times=None))
    report("y")
    report("x")
    with pytest.raises(stripe.InvalidRequestError, match="scripted"):
        report("x")
    with pytest.raises(stripe.PermissionError):
        report(customer="cus_other")
    for _ in range(3):
        with pytest.raises(stripe.InvalidRequestError, match="Unrecognized"):
            report(event_name="other")


def test_faults_strike_other_operations_too(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> None:
    frozen.add_fault(Fault(kind=FaultKind.ERROR_500, operation="meters.list"))
    with pytest.raises(stripe.APIError):
        stripe_sdk.v1.billing.meters.list()
    assert len(stripe_sdk.v1.billing.meters.list().data) == 1


def test_the_sdk_waits_for_nothing_of_ours(frozen: LocalStripe, report: Any) -> None:
    """Its own retries are off: one fault is one failure."""
    frozen.add_fault(Fault(kind=FaultKind.CONFLICT, code="idempotency_key_in_use"))
    with pytest.raises(stripe.APIError) as caught:
        report("one")
    assert caught.value.error is not None
    assert caught.value.error.code == "idempotency_key_in_use"
    assert len(frozen.requests("meter_events.create")) == 1


def outcomes_of(server: LocalStripe, report: Any, identifiers: list[str]) -> dict[str, list[str]]:
    """Return what became of each identifier's attempts, three rounds of them."""
    for _ in range(3):
        for identifier in identifiers:
            try:
                report(identifier)
            except stripe.StripeError:
                continue
    log = server.requests("meter_events.create")
    return {name: [str(entry.fault) for entry in log if entry.identifier == name] for name in identifiers}


def test_seeded_faults_do_not_depend_on_the_order_of_calls(frozen: LocalStripe, report: Any) -> None:
    """Concurrent clients arrive in any order, and a seed still means the same faults."""
    kinds = (FaultKind.LOST_ANSWER, FaultKind.ERROR_500, FaultKind.RESET, FaultKind.RATE_LIMITED)
    faults = RandomFaults(seed=7, rate=0.5, kinds=kinds)
    identifiers = [f"id-{number}" for number in range(12)]
    seen = []
    for order in (identifiers, identifiers[::-1]):
        frozen.reset()
        frozen.create_customer("cus_known")
        frozen.create_meter(event_name="ai_suggestion")
        frozen.set_random_faults(faults)
        seen.append(outcomes_of(frozen, report, order))
    assert seen[0] == seen[1]
    struck = [fault for faults in seen[0].values() for fault in faults if fault != "None"]
    assert 8 < len(struck) < 28
    assert set(struck) == {kind.value for kind in kinds}


def test_seeded_faults_let_an_identifier_through_at_last(frozen: LocalStripe, report: Any) -> None:
    frozen.set_random_faults(RandomFaults(seed=1, rate=1, kinds=(FaultKind.RESET,), per_identifier_max=2))
    for _ in range(2):
        with pytest.raises(stripe.APIConnectionError):
            report("one")
    report("one")
    frozen.clear_faults()
    report("two")
