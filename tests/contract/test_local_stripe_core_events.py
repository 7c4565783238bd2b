"""v2 events as the SDK reads them: thin in lists, whole when fetched, pages by link."""

import json
import urllib.error
import urllib.request
from datetime import timedelta
from typing import Any

import pytest
import stripe

from meterctl.sandbox.local_stripe import LocalStripe, RelatedObject

REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"
METER = RelatedObject(id="mtr_7", type="billing.meter", url="/v1/billing/meters/mtr_7")


@pytest.fixture
def listing(frozen: LocalStripe, stripe_sdk: stripe.StripeClient) -> Any:
    """Return what lists v2 events with the given parameters."""
    assert frozen.url

    def ask(**params: Any) -> Any:
        call: Any = stripe_sdk.v2.core.events.list  # its params are a typed dict
        return call(params)

    return ask


def ids(page: Any) -> list[str]:
    return [event.id for event in page.data]


def emit_each_second(stripe_: LocalStripe, number: int) -> list[str]:
    """Emit events one second apart, return their ids from the oldest on."""
    emitted = []
    for _ in range(number):
        emitted.append(stripe_.emit_thin(NO_METER, {}))
        stripe_.clock.advance(timedelta(seconds=1))
    return emitted


def test_a_listed_event_is_thin_and_a_fetched_one_has_data(
    frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any
) -> None:
    event_id = frozen.emit_thin(REPORT, {"developer_message_summary": "There is 1 invalid event"}, related=METER)
    (seen,) = listing().data
    assert (seen.id, seen.object, seen.type, seen.livemode) == (event_id, "v2.core.event", REPORT, False)
    assert (seen.created, seen.related_object.id) == ("2026-11-21T12:00:00.000Z", "mtr_7")
    assert "data" not in seen
    fetched: Any = stripe_sdk.v2.core.events.retrieve(event_id)
    assert isinstance(fetched, stripe.events.V1BillingMeterErrorReportTriggeredEvent)
    assert fetched.data.developer_message_summary == "There is 1 invalid event"
    frozen.set_options(v2_list_has_data=True)
    assert listing().data[0].data.developer_message_summary == "There is 1 invalid event"


def test_the_sdk_pages_by_link_and_keeps_the_filters(frozen: LocalStripe, listing: Any) -> None:
    emitted = emit_each_second(frozen, 25)
    frozen.emit_thin(REPORT, {}, related=METER)
    wanted = {"types": [NO_METER], "created": {"gte": "2026-11-21T12:00:02Z"}, "limit": 7}
    assert [event.id for event in listing(**wanted).auto_paging_iter()] == emitted[:1:-1]
    assert len(listing().data) == 10


def test_a_page_leads_forth_and_back(frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any) -> None:
    """New events at the top do not move what a link names."""
    emitted = emit_each_second(frozen, 5)
    first = listing(limit=2)
    assert (first.previous_page_url, ids(first)) == (None, [emitted[4], emitted[3]])
    frozen.emit_thin(NO_METER, {})

    def follow(link: str) -> Any:
        return json.loads(stripe_sdk.raw_request("get", link).body)

    second = follow(first.next_page_url)
    assert [event["id"] for event in second["data"]] == [emitted[2], emitted[1]]
    last = follow(second["next_page_url"])
    assert ([event["id"] for event in last["data"]], last["next_page_url"]) == ([emitted[0]], None)
    assert [event["id"] for event in follow(second["previous_page_url"])["data"]] == ids(first)


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({}, {0, 1, 2}),
        ({"types": [REPORT]}, {1, 2}),
        ({"types": [NO_METER, REPORT]}, {0, 1, 2}),
        ({"types": ["v1.billing.*"]}, set()),
        ({"object_id": "mtr_7"}, {1, 2}),
        ({"object_id": "mtr_8"}, set()),
        ({"created": {"gt": "2026-11-21T12:00:00Z"}}, {1, 2}),
        ({"created": {"gt": "2026-11-21T12:00:00Z", "lt": "2026-11-21T13:00:01.001+01:00"}}, {1}),
        ({"created": {"gte": "2026-11-21T12:00:01.001Z"}}, {2}),
    ],
)
def test_filters_pick_what_is_listed(
    frozen: LocalStripe, listing: Any, params: dict[str, Any], wanted: set[int]
) -> None:
    emitted = []
    for kind, related in ((NO_METER, None), (REPORT, METER), (REPORT, METER)):
        emitted.append(frozen.emit_thin(kind, {}, related=related))
        frozen.clock.advance(timedelta(seconds=1))
    assert {emitted.index(event_id) for event_id in ids(listing(**params))} == wanted


@pytest.mark.parametrize(
    "params",
    [
        {"types": [f"kind.{number}" for number in range(21)]},
        {"created": {"gte": "yesterday"}},
        {"created": {"gte": "2026-11-21T12:00:00"}},
        {"created": "2026-11-21T12:00:00Z"},
        {"page": "after-evt_nobody"},
        {"limit": 0},
        {"starting_after": "evt_1"},
    ],
)
def test_what_stripe_does_not_take_is_refused_in_the_shape_of_v2(listing: Any, params: dict[str, Any]) -> None:
    with pytest.raises(stripe.StripeError) as caught:
        listing(**params)
    assert caught.value.http_status == 400
    body: Any = caught.value.json_body
    assert set(body["error"]) == {"code", "message", "type"}


def test_events_are_kept_for_thirty_days(frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any) -> None:
    event_id = frozen.emit_thin(NO_METER, {})
    frozen.clock.advance(timedelta(days=30, seconds=1))
    assert ids(listing()) == []
    with pytest.raises(stripe.StripeError) as caught:
        stripe_sdk.v2.core.events.retrieve(event_id)
    assert (caught.value.http_status, caught.value.code) == (404, "not_found")


def test_v2_wants_to_know_the_version(frozen: LocalStripe) -> None:
    request = urllib.request.Request(f"{frozen.url}/v2/core/events")  # noqa: S310  # our own server
    request.add_header("Authorization", f"Bearer {frozen.api_key}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as caught, opener.open(request, timeout=5):
        pass
    with caught.value as error:
        assert (error.code, "Stripe-Version" in json.load(error)["error"]["message"]) == (400, True)
    request.add_header("Stripe-Version", "2026-10-28.endive")
    with opener.open(request, timeout=5) as response:
        assert json.load(response) == {"data": [], "next_page_url": None, "previous_page_url": None}


def test_listing_and_retrieving_are_two_permissions(frozen: LocalStripe, make_stripe_sdk: Any) -> None:
    event_id = frozen.emit_thin(NO_METER, {})
    frozen.add_key("rk_test_reader", allowed=["core_events.retrieve"])
    reader = make_stripe_sdk("rk_test_reader")
    assert reader.v2.core.events.retrieve(event_id).livemode is False
    with pytest.raises(stripe.StripeError) as caught:
        reader.v2.core.events.list()
    assert caught.value.http_status == 403
    assert frozen.request_counts() == {"core_events.list": {"403": 1}, "core_events.retrieve": {"200": 1}}


def test_modes_have_events_of_their_own(frozen: LocalStripe, make_stripe_sdk: Any, listing: Any) -> None:
    live = frozen.emit_thin(NO_METER, {}, livemode=True)
    assert ids(listing()) == []
    (seen,) = make_stripe_sdk(frozen.api_key_live).v2.core.events.list().data
    assert (seen.id, seen.livemode) == (live, True)


def test_lists_lag_by_seed_and_retrieval_does_not(
    frozen: LocalStripe, stripe_sdk: stripe.StripeClient, listing: Any
) -> None:
    frozen.set_options(event_list_lag_s=10, event_list_seed=1)
    emitted = [frozen.emit_thin(NO_METER, {}) for _ in range(10)]
    assert ids(listing()) == []
    assert stripe_sdk.v2.core.events.retrieve(emitted[0]).id == emitted[0]
    frozen.clock.advance(timedelta(seconds=5))
    assert 0 < len(listing().data) < 10
    frozen.clock.advance(timedelta(seconds=5))
    assert sorted(ids(listing())) == emitted
    assert ids(listing()) not in (emitted, emitted[::-1])


def test_instants_have_milliseconds(frozen: LocalStripe, listing: Any) -> None:
    frozen.clock.advance(timedelta(microseconds=1_234_567))
    frozen.emit_thin(NO_METER, {})
    assert listing(created={"gte": "2026-11-21T12:00:01.234Z"}).data[0].created == "2026-11-21T12:00:01.234Z"
