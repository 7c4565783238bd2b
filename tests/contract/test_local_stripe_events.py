"""v1 events as the SDK reads them: lists, pages, filters, and what a subscription's life tells."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe

NOW_S = 1_795_262_400
"""The clock of `frozen`, in unix seconds."""

NOW = datetime.fromtimestamp(NOW_S, UTC)

DAY = timedelta(days=1)


@pytest.fixture
def listing(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> Any:
    """Return what lists v1 events with the given parameters."""
    assert frozen.url

    def ask(**params: Any) -> Any:
        call: Any = stripe_sdk.v1.events.list  # its params are a typed dict
        return call(params)

    return ask


def ids(page: Any) -> list[str]:
    return [event.id for event in page.data]


def emit_each_second(stripe_: LocalStripe, number: int, kind: str = "customer.updated") -> list[str]:
    """Emit events one second apart, return their ids from the oldest on."""
    emitted = []
    for _ in range(number):
        emitted.append(stripe_.emit(kind, {"id": "cus_known", "object": "customer"}))
        stripe_.clock.advance(timedelta(seconds=1))
    return emitted


def test_an_event_is_listed_and_retrieved_as_it_was(
    frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any
) -> None:
    name = {"first": "Ada"}
    about = {"id": "cus_known", "object": "customer", "name": name}
    event_id = frozen.emit("customer.updated", about, previous_attributes={"name": None}, created=NOW_S - 60)
    name["first"] = "changed afterwards"
    event = stripe_sdk.v1.events.retrieve(event_id)
    assert (event.id, event.object, event.type) == (event_id, "event", "customer.updated")
    assert (event.created, event.api_version, event.livemode) == (NOW_S - 60, "2026-10-28.endive", False)
    assert event.data.to_dict() == {
        "object": {"id": "cus_known", "object": "customer", "name": {"first": "Ada"}},
        "previous_attributes": {"name": None},
    }
    assert [each.to_dict() for each in listing().data] == [event.to_dict()]


def test_the_newest_comes_first_ten_at_a_time(frozen: LocalStripe, listing: Any) -> None:
    emitted = emit_each_second(frozen, 25)
    page = listing()
    assert (ids(page), page.has_more) == (emitted[:14:-1], True)
    assert [event.id for event in listing(limit=7).auto_paging_iter()] == emitted[::-1]
    assert ids(listing(limit=3, ending_before=emitted[10])) == [emitted[13], emitted[12], emitted[11]]


def test_events_of_one_second_come_the_latest_first(frozen: LocalStripe, listing: Any) -> None:
    emitted = [frozen.emit("customer.updated", {}) for _ in range(3)]
    assert ids(listing()) == emitted[::-1]


@pytest.mark.parametrize(
    ("created", "wanted"),
    [
        ({"gt": NOW_S + 1}, {2, 3}),
        ({"gte": NOW_S + 1}, {1, 2, 3}),
        ({"lt": NOW_S + 1}, {0}),
        ({"lte": NOW_S + 1}, {0, 1}),
        ({"gt": NOW_S, "lt": NOW_S + 3}, {1, 2}),
        (NOW_S + 2, {2}),
    ],
)
def test_created_bounds_what_is_listed(frozen: LocalStripe, listing: Any, created: Any, wanted: set[int]) -> None:
    emitted = emit_each_second(frozen, 4)
    assert {emitted.index(event_id) for event_id in ids(listing(created=created))} == wanted


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"type": "invoice.payment_failed"}, 1),
        ({"type": "customer.*"}, 2),
        ({"type": "*.deleted"}, 1),
        ({"type": "customer.subscription.update"}, 0),
        ({"types": ["customer.subscription.updated", "invoice.payment_failed"]}, 2),
        ({"types": ["customer.*"]}, 0),
        ({"delivery_success": False}, 3),
    ],
)
def test_types_pick_what_is_listed(frozen: LocalStripe, listing: Any, params: dict[str, Any], wanted: int) -> None:
    """A wildcard works in `type` alone."""
    for kind in ("customer.subscription.updated", "customer.subscription.deleted", "invoice.payment_failed"):
        frozen.emit(kind, {})
    assert len(listing(**params).data) == wanted


@pytest.mark.parametrize(
    "params",
    [
        {"type": "invoice.paid", "types": ["invoice.paid"]},
        {"types": [f"kind.{number}" for number in range(21)]},
        {"limit": 101},
        {"created": "today"},
        {"created": {"since": 1}},
        {"created": {"gte": 10**18}},
        {"starting_after": "evt_nobody"},
        {"colour": "red"},
    ],
)
def test_what_stripe_does_not_take_is_refused(listing: Any, params: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        listing(**params)


def test_events_are_kept_for_thirty_days(frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any) -> None:
    event_id = frozen.emit("customer.updated", {})
    frozen.clock.advance(30 * DAY)
    assert ids(listing()) == [event_id]
    frozen.clock.advance(timedelta(seconds=1))
    assert ids(listing()) == []
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stripe_sdk.v1.events.retrieve(event_id)
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_modes_have_events_of_their_own(frozen: LocalStripe, make_stripe_sdk: Any, listing: Any) -> None:
    tested, live = frozen.emit("customer.updated", {}), frozen.emit("customer.updated", {}, livemode=True)
    assert tested != live
    assert ids(listing()) == [tested]
    (seen,) = make_stripe_sdk(frozen.api_key_live).v1.events.list().data
    assert (seen.id, seen.livemode) == (live, True)


def test_listing_and_retrieving_are_two_permissions(frozen: LocalStripe, make_stripe_sdk: Any) -> None:
    event_id = frozen.emit("customer.updated", {})
    frozen.add_key("rk_test_reader", allowed=["events.list"])
    reader = make_stripe_sdk("rk_test_reader")
    reader.v1.events.list()
    with pytest.raises(stripe.PermissionError):
        reader.v1.events.retrieve(event_id)
    assert frozen.request_counts() == {"events.list": {"200": 1}, "events.retrieve": {"403": 1}}


def test_a_subscription_lives_and_tells(frozen: LocalStripe, listing: Any) -> None:
    subscription_id = frozen.create_subscription("cus_known", status="trialing", metadata={"user_id": "7"})
    frozen.update_subscription(subscription_id, status="active", period_end=NOW_S + 40 * 86400)
    frozen.clock.advance(DAY)
    frozen.end_subscription(subscription_id)
    ended, updated, created = listing().data
    assert [event.type.rpartition(".")[2] for event in (created, updated, ended)] == ["created", "updated", "deleted"]
    first = created.data.object
    assert (first.id, first.customer, first.status) == (subscription_id, "cus_known", "trialing")
    assert (first.start_date, first.ended_at, first.metadata.user_id) == (NOW_S, None, "7")
    previous = updated.data.previous_attributes
    assert set(previous.to_dict()) == {"status", "items"}
    assert (previous.status, previous["items"].data[0].current_period_end) == ("trialing", NOW_S + 30 * 86400)
    last = ended.data.object
    assert (last.status, last.ended_at, last.canceled_at) == ("canceled", NOW_S + 86400, NOW_S + 86400)
    assert [each.status for each in frozen.subscriptions()] == ["canceled"]


@pytest.mark.parametrize("before_basil", [False, True])
def test_a_period_stands_on_the_item_since_basil(frozen: LocalStripe, listing: Any, before_basil: bool) -> None:  # noqa: FBT001  # a case
    frozen.set_options(events_before_basil=before_basil)
    frozen.create_subscription("cus_known", period_start=NOW_S - 10, period_end=NOW_S + 10)
    (event,) = listing().data
    subscription = event.data.object
    (item,) = subscription["items"].data
    bearer, other = (subscription, item) if before_basil else (item, subscription)
    assert (bearer.current_period_start, bearer.current_period_end) == (NOW_S - 10, NOW_S + 10)
    assert "current_period_end" not in other
    assert event.api_version == ("2025-02-24.acacia" if before_basil else "2026-10-28.endive")


@pytest.mark.parametrize("before_basil", [False, True])
def test_an_invoice_names_its_subscription(frozen: LocalStripe, listing: Any, before_basil: bool) -> None:  # noqa: FBT001  # a case
    frozen.set_options(events_before_basil=before_basil)
    subscription_id = frozen.create_subscription("cus_known")
    frozen.fail_invoice(subscription_id)
    (event,) = listing(type="invoice.payment_failed").data
    invoice = event.data.object
    named = invoice.subscription if before_basil else invoice.parent.subscription_details.subscription
    assert (named, invoice.customer) == (subscription_id, "cus_known")
    assert ("parent" in invoice, "subscription" in invoice) == (not before_basil, before_basil)
    assert frozen.subscriptions()[0].status == "active"


def test_a_checkout_names_who_bought(frozen: LocalStripe, listing: Any) -> None:
    subscription_id = frozen.create_subscription("cus_known", subscription_id="sub_mine")
    frozen.complete_checkout(subscription_id, client_reference_id="7", metadata={"organization_id": "9"})
    session = listing(type="checkout.session.completed").data[0].data.object
    assert (session.subscription, session.customer, session.mode) == ("sub_mine", "cus_known", "subscription")
    assert (session.client_reference_id, session.metadata.organization_id) == ("7", "9")


def test_a_subscription_is_made_once_and_ends_once(frozen: LocalStripe) -> None:
    frozen.create_subscription("cus_known", subscription_id="sub_mine")
    with pytest.raises(ValueError, match="already exists"):
        frozen.create_subscription("cus_known", subscription_id="sub_mine")
    frozen.end_subscription("sub_mine")
    with pytest.raises(ValueError, match="cannot be changed"):
        frozen.update_subscription("sub_mine", status="active")
    with pytest.raises(ValueError, match="No such subscription: 'sub_other'"):
        frozen.fail_invoice("sub_other")
    assert [event.type for event in frozen.snapshot_events()] == [
        "customer.subscription.created",
        "customer.subscription.deleted",
    ]


def test_lists_lag_and_retrieval_does_not(frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any) -> None:
    frozen.set_options(event_list_lag_s=5)
    event_id = frozen.emit("customer.updated", {}, created=NOW_S - 3600)
    frozen.clock.advance(timedelta(seconds=4.9))
    assert ids(listing()) == []
    assert stripe_sdk.v1.events.retrieve(event_id).id == event_id
    frozen.clock.advance(timedelta(seconds=0.1))
    assert ids(listing()) == [event_id]


def shown_after(frozen: LocalStripe, listing: Any, seed: int) -> list[list[str]]:
    """Return what lists show 0, 5 and 10 s after twenty events at once, with a lag of up to 10 s."""
    frozen.clock.set(NOW, frozen=True)
    frozen.set_options(event_list_lag_s=10, event_list_seed=seed)
    shown = []
    for _ in range(3):
        shown.append([event.id for event in listing(limit=7).auto_paging_iter()])
        frozen.clock.advance(timedelta(seconds=5))
    return shown


def test_a_seed_draws_lag_and_order(frozen: LocalStripe, listing: Any) -> None:
    """A later event may show before an earlier one, and one that shows late gets in between."""
    emitted = [frozen.emit("customer.updated", {}) for _ in range(20)]
    nothing, some, everything = shown_after(frozen, listing, seed=1)
    assert nothing == []
    assert 0 < len(some) < 20
    assert [event_id for event_id in everything if event_id in some] == some
    assert sorted(everything) == emitted
    assert everything not in (emitted, emitted[::-1])
    assert shown_after(frozen, listing, seed=1) == [nothing, some, everything]
    assert shown_after(frozen, listing, seed=2)[2] != everything


def test_seconds_stay_in_order_under_a_seed(frozen: LocalStripe, listing: Any) -> None:
    frozen.set_options(event_list_seed=1)
    emitted = emit_each_second(frozen, 10)
    assert ids(listing()) == emitted[::-1]
