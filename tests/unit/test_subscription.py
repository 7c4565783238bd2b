"""What events tell of a subscription, and that neither their order nor their repetition changes what is known."""

import json
from datetime import UTC, datetime
from functools import reduce
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterctl.core.stripe_event import StripeEvent
from meterctl.core.subscription import Checkout, Facts, Held, Row, document_of, facts_in, joined, row_of
from meterctl.core.subscription_events import SUBSCRIPTION_TYPES, told_by
from meterctl.errors import InputError
from meterctl.settings.shipped import shipped_values
from subscription_events import (
    BASE,
    DAY,
    HOUR,
    changed,
    checkout,
    deleted,
    event,
    item,
    old_subscription,
    payment_failed,
    subscription,
)

FAR, LONG_AGO = datetime(9000, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC)


def second(at: int) -> datetime:
    return datetime.fromtimestamp(BASE + at, UTC)


def facts_of(*events: StripeEvent) -> Facts:
    told = [told_by(event) for event in events]
    return reduce(joined, (one.facts for one in told if one), Facts())


def row(*events: StripeEvent, held: Held | None = None) -> Row:
    return row_of(facts_of(*events), held)


def held(status: str | None = "active", *, ended_at: datetime = FAR, event_at: datetime = LONG_AGO) -> Held:
    return Held(status=status, ended_at=ended_at, event_at=event_at)


def test_the_types_are_those_that_can_be_configured() -> None:
    assert set(shipped_values()["webhooks"]["handle"][:5]) == SUBSCRIPTION_TYPES


# Reading


@pytest.mark.parametrize("body", [subscription(), old_subscription()], ids=["period on the item", "period above it"])
def test_a_snapshot_is_read_in_both_shapes(body: dict[str, Any]) -> None:
    assert row(event("customer.subscription.updated", body, at=5)) == {
        "status": "active",
        "started_at": second(0),
        "ended_at": None,
        "period_start": second(0),
        "period_end": second(DAY),
        "event_at": second(5),
    }


@pytest.mark.parametrize(
    ("items", "start", "end"),
    [
        ([item(0, HOUR, usage_type="licensed"), item(1, DAY)], 1, DAY),
        ([item(1, 2 * DAY), item(2, DAY)], 2, DAY),
        ([item(3, DAY, usage_type="licensed")], 3, DAY),
        ([item(1, DAY), {"price": None}], 1, DAY),
        ([None, item(1, DAY)], 1, DAY),
    ],
    ids=["the metered one", "the earliest end", "none is metered", "without a price", "nonsense beside it"],
)
def test_of_several_items_the_period_is_that_of_metered_usage(items: list[Any], start: int, end: int) -> None:
    found = row(changed(at=5, items={"data": items}))
    assert (found["period_start"], found["period_end"]) == (second(start), second(end))


def test_a_period_that_nobody_tells_is_unknown() -> None:
    found = row(changed(at=5, items={"data": []}))
    assert (found["period_start"], found["period_end"]) == (None, None)


def test_a_backdated_subscription_starts_at_its_start_date() -> None:
    assert row(changed(at=5, start_date=BASE - DAY))["started_at"] == second(-DAY)
    assert row(changed(at=5, start_date=None))["started_at"] == second(0)


@pytest.mark.parametrize(
    ("last", "status", "ended_at"),
    [
        (deleted(at=9, ended_at=BASE + 8), "canceled", 8),
        (deleted(at=9, ended_at=None, canceled_at=BASE + 2), "canceled", 9),
        (changed("active", at=9, verb="deleted"), "canceled", 9),
        (changed("incomplete_expired", at=9), "incomplete_expired", 9),
        (changed("canceled", at=9, ended_at=BASE + 7), "canceled", 7),
    ],
    ids=["as told", "not when the end was asked for", "deleted is ended", "never paid", "updated"],
)
def test_an_end_has_an_instant(last: StripeEvent, status: str, ended_at: int) -> None:
    found = row(changed(at=5), last)
    assert (found["status"], found["ended_at"]) == (status, second(ended_at))


def test_an_end_that_is_to_come_is_no_end() -> None:
    found = row(changed(at=5, cancel_at_period_end=True, canceled_at=BASE + 5, cancel_at=BASE + DAY))
    assert (found["status"], found["ended_at"]) == ("active", None)


@pytest.mark.parametrize("key", ["id", "customer", "status"])
@pytest.mark.parametrize("value", [None, "", 5])
def test_a_subscription_that_lacks_something_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"evt_x: its object has no {key} "):
        told_by(event("customer.subscription.updated", subscription() | {key: value}, at=1, id="evt_x"))


@pytest.mark.parametrize("value", ["2026-01-01", 1.5, True, 10**30])
@pytest.mark.parametrize("key", ["start_date", "ended_at"])
def test_an_instant_that_is_none_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        told_by(event("customer.subscription.updated", subscription() | {key: value}, at=1))


def test_a_payload_without_an_object_is_refused() -> None:
    for kind in SUBSCRIPTION_TYPES - {"checkout.session.completed", "invoice.payment_failed"}:
        with pytest.raises(InputError):
            told_by(event(kind, None, at=1))  # type: ignore[arg-type] # what no event of Stripe's has


@pytest.mark.parametrize(
    "other",
    [
        payment_failed(at=1, of=None),
        event("invoice.payment_failed", {"customer": "cus_ada", "subscription": None}, at=1),
        checkout(at=1, mode="payment", subscription=None),
        checkout(at=1, mode="setup"),
        checkout(at=1, subscription=None),
    ],
    ids=["present invoice", "older invoice", "payment", "setup", "no subscription"],
)
def test_what_is_not_about_a_subscription_tells_nothing(other: StripeEvent) -> None:
    assert told_by(other) is None


def test_an_invoice_is_read_in_both_shapes() -> None:
    older = event("invoice.payment_failed", {"customer": "cus_ada", "subscription": "sub_1"}, at=7)
    assert told_by(older) == told_by(payment_failed(at=7))
    assert told_by(older).subscription == "sub_1"  # type: ignore[union-attr] # it is not None


# Who subscribed


BOTH = {"user", "organization"}


@pytest.mark.parametrize(
    ("reference", "user", "organization", "columns", "subject"),
    [
        ("ada", None, None, BOTH, ("user", "ada")),
        ("ada", "bob", "acme", BOTH, ("user", "ada")),
        ("acme", None, "acme", BOTH, ("organization", "acme")),
        (None, "bob", "acme", BOTH, ("user", "bob")),
        (None, None, "acme", BOTH, ("organization", "acme")),
        (None, None, None, BOTH, None),
        ("acme", None, None, {"organization"}, ("organization", "acme")),
        ("ada", None, "acme", {"organization"}, ("organization", "acme")),
        ("ada", "ada", None, {"organization"}, ("organization", "ada")),
        (None, "ada", None, {"organization"}, None),
        ("acme", None, "acme", {"user"}, None),
        ("acme", "ada", "acme", {"user"}, ("user", "ada")),
        ("ada", None, None, set(), None),
    ],
)
def test_who_subscribed(
    reference: str | None,
    user: str | None,
    organization: str | None,
    columns: set[str],
    subject: tuple[str, str] | None,
) -> None:
    session = Checkout(
        created=second(1), event_id="evt", customer="cus", reference=reference, user=user, organization=organization
    )
    assert session.subject(columns) == subject


def test_a_checkout_is_read() -> None:
    told = told_by(checkout(at=1, client_reference_id="", metadata={"user_id": "", "organization_id": "acme"}))
    assert told is not None
    assert told.facts.checkout is not None
    assert told.facts.checkout.subject(BOTH) == ("organization", "acme")
    assert told_by(checkout(at=1, metadata=None)) is not None
    with pytest.raises(InputError, match="customer"):
        told_by(checkout(at=1, customer=None))


# What follows


@pytest.mark.parametrize("status", ["active", "trialing", "incomplete", "unpaid", "paused", "past_due"])
def test_a_failed_payment_makes_it_past_due(status: str) -> None:
    assert row(changed(status, at=5), payment_failed(at=6))["status"] == "past_due"
    assert row(changed(status, at=5), payment_failed(at=4))["status"] == status, "told since"


@pytest.mark.parametrize("status", ["canceled", "incomplete_expired"])
def test_a_failed_payment_does_not_revive_what_has_ended(status: str) -> None:
    assert row(changed(status, at=5), payment_failed(at=6))["status"] == status


def test_in_the_same_second_the_id_decides_and_an_end_is_last() -> None:
    one, other = changed("active", at=5, id="evt_a"), changed("past_due", at=5, id="evt_b")
    end = deleted(at=5, id="evt_0")
    for order in permutations([one, other]):
        assert row(*order)["status"] == "past_due"
    for order in permutations([one, other, end]):
        assert row(*order)["status"] == "canceled"
    assert row(changed(at=5, id="evt_a"), payment_failed(at=5, id="evt_b"))["status"] == "past_due"
    assert row(changed(at=5, id="evt_b"), payment_failed(at=5, id="evt_a"))["status"] == "active"


def test_a_snapshot_is_not_written_over_a_newer_one() -> None:
    known = (changed("past_due", at=5),)
    assert row(*known, held=held(event_at=second(6))) == {}
    assert row(*known, held=held(event_at=second(5)))["status"] == "past_due"
    assert row(*known, checkout(at=9), held=held(event_at=second(6))) == {}, "a checkout makes no snapshot newer"


def test_a_failure_after_what_the_row_holds_counts() -> None:
    """Whether or not anything else is known of the subscription."""
    for known in ((payment_failed(at=7),), (payment_failed(at=7), changed("canceled", at=5, ended_at=BASE + 5))):
        assert row(*known, held=held(event_at=second(6))) == {"status": "past_due"}
        assert row(*known, held=held(event_at=second(7))) == {"status": "past_due"}
        assert row(*known, held=held(event_at=second(8))) == {}
        assert row(*known, held=held("unpaid", event_at=second(6))) == {"status": "past_due"}
        assert row(*known, held=held("canceled", event_at=second(6))) == {}
        assert row(*known, held=held(None, event_at=second(6))) == {}
        assert row(*known, held=held(ended_at=second(6), event_at=second(6))) == {}, "ended before"
        assert row(*known, held=held(ended_at=second(9), event_at=second(6))) == {"status": "past_due"}, "will end"


def test_a_failure_alone_makes_no_row() -> None:
    assert row(payment_failed(at=7)) == {}


# Order and repetition


@st.composite
def events(draw: st.DrawFn) -> StripeEvent:
    """Any event of one subscription; an id stands for one event, so all that it says follows from the id."""
    at, number = draw(st.integers(0, 3)), draw(st.integers(0, 15))
    id_ = f"evt_{number}_{at}"
    status = ("active", "trialing", "past_due", "unpaid", "incomplete", "incomplete_expired")[number % 6]
    return (
        lambda: changed(status, at=at, id=id_, items={"data": [item(at, DAY + number)]}),
        lambda: deleted(at=at, id=id_, ended_at=None if number % 8 else BASE - number),
        lambda: payment_failed(at=at, id=id_),
        lambda: event("checkout.session.completed", _session(number), at=at, id=id_),
    )[number % 4]()


def _session(number: int) -> dict[str, Any]:
    who = {"client_reference_id": f"user_{number}" if number % 8 else None, "metadata": {"organization_id": "acme"}}
    return {"mode": "subscription", "customer": "cus_ada", "subscription": "sub_1", **who}


def held_rows() -> st.SearchStrategy[Held | None]:
    seconds = st.integers(-1, 4).map(second)
    instants = (seconds | st.just(FAR), seconds | st.just(LONG_AGO))
    statuses = st.sampled_from(["active", "past_due", "canceled", None])
    return st.none() | st.builds(Held, status=statuses, ended_at=instants[0], event_at=instants[1])


@given(st.lists(events()), st.lists(events()), st.lists(events()))
def test_joining_is_commutative_associative_and_idempotent(
    first: list[StripeEvent], second_: list[StripeEvent], third: list[StripeEvent]
) -> None:
    a, b, c = facts_of(*first), facts_of(*second_), facts_of(*third)
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, a) == a
    assert joined(a, Facts()) == a


@given(st.data(), st.lists(events(), min_size=1), held_rows())
def test_any_order_with_any_repetition_makes_the_same_row(
    data: st.DataObject, told: list[StripeEvent], before: Held | None
) -> None:
    """Also where each event is written to the row as it comes, which was there or came at some time."""
    again = data.draw(st.lists(st.sampled_from(told)))
    shuffled = data.draw(st.permutations([*told, *again]))
    assert facts_of(*shuffled) == facts_of(*told)
    assert written(shuffled, before) == written(told, before)


def written(told: list[StripeEvent], before: Held | None) -> dict[str, object]:
    """The row after each event was written to it, as the table's adapter does."""
    facts, found, values = Facts(), before, dict[str, object]()
    for one in told:
        news = facts_of(one)
        facts = joined(facts, news)
        if facts.include(news) and (found or facts.snapshot):
            values |= row_of(facts, found)
            found = _held_after(before, values)
    return values


def _held_after(before: Held | None, values: dict[str, Any]) -> Held:
    base = before or held(None)
    return Held(
        status=values.get("status", base.status),
        ended_at=values.get("ended_at", base.ended_at) or FAR,
        event_at=values.get("event_at", base.event_at),
    )


@given(st.lists(events()))
def test_facts_are_kept_whole(told: list[StripeEvent]) -> None:
    facts = facts_of(*told)
    assert facts_in(json.loads(json.dumps(document_of(facts)))) == facts


def test_what_is_older_is_not_included() -> None:
    facts = facts_of(changed(at=5), checkout(at=3))
    assert facts.include(facts_of(changed(at=5)))
    assert facts.include(facts_of(checkout(at=3)))
    assert not facts.include(facts_of(changed(at=4)))
    assert not facts.include(facts_of(checkout(at=2)))
