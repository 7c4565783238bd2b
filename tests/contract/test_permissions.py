"""What a key may do is found out without anything being stored, let alone billed."""

import pytest
import stripe

from meterctl.core.diagnosis import Finding, Status
from meterctl.errors import NotPermittedError, RefusedError, UnavailableError
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.local_stripe.faults import Fault, FaultKind
from meterctl.stripe_api.permissions import events_permission, totals_permission, write_permission
from stripe_fixtures import MakeSdk


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_the_right_to_write_shows_in_a_400_and_stores_nothing(
    local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient
) -> None:
    """Also where Stripe would take unknown customers at first, and where the meter counts events."""
    local_stripe.set_options(unknown_customer="later")
    local_stripe.create_meter(event_name="counted", formula="count")
    for _ in range(2):
        assert only(list(write_permission(stripe_sdk))).status is Status.OK
    assert [request.status for request in local_stripe.requests("meter_events.create")] == [400, 400]
    assert (local_stripe.events(), local_stripe.async_rejections(), local_stripe.totals()) == ([], [], {})


def test_the_lack_of_it_shows_in_a_403_before_anything_else_is_looked_at(
    local_stripe: LocalStripe, make_stripe_sdk: MakeSdk
) -> None:
    local_stripe.add_key("rk_test_example", allowed=["meters.*"])
    with pytest.raises(NotPermittedError, match=r"meter_events\.create"):
        list(write_permission(make_stripe_sdk("rk_test_example")))


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        (FaultKind.NOT_FOUND, RefusedError),
        (FaultKind.ERROR_500, UnavailableError),
        (FaultKind.RATE_LIMITED, UnavailableError),
        (FaultKind.RESET, UnavailableError),
        (FaultKind.UNAUTHORIZED, NotPermittedError),
    ],
)
def test_no_other_answer_proves_it(
    local_stripe: LocalStripe, stripe_sdk: stripe.StripeClient, kind: FaultKind, raised: type[Exception]
) -> None:
    local_stripe.add_fault(Fault(kind=kind))
    with pytest.raises(raised):
        list(write_permission(stripe_sdk))


def test_totals_may_be_read_or_not(local_stripe: LocalStripe, make_stripe_sdk: MakeSdk) -> None:
    meter_id = local_stripe.meters()[0].id
    assert only(list(totals_permission(make_stripe_sdk(), meter_id))).status is Status.OK
    local_stripe.add_key("rk_test_example", allowed=["meters.*"])
    lacking = only(list(totals_permission(make_stripe_sdk("rk_test_example"), meter_id)))
    assert (lacking.status, "event_summaries.list" in lacking.message) == (Status.WARN, True)


def test_each_list_of_events_may_be_read_or_not(local_stripe: LocalStripe, make_stripe_sdk: MakeSdk) -> None:
    types = ["invoice.payment_failed", "v1.billing.meter.no_meter_found"]
    assert [one.status for one in events_permission(make_stripe_sdk(), types)] == [Status.OK, Status.OK]
    local_stripe.add_key("rk_test_example", allowed=["events.list"])
    first, second = events_permission(make_stripe_sdk("rk_test_example"), types)
    assert (first.status, second.status, "core_events.list" in second.message) == (Status.OK, Status.WARN, True)
    assert list(events_permission(make_stripe_sdk(), [])) == []
