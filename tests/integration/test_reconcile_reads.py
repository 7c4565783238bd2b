"""What comparing costs in reads, and what is left when they run out, move on, or fail."""

from datetime import timedelta

import pytest

from meterctl.core.reconciliation import Cause
from meterctl.core.spans import Span
from meterctl.errors import ExitCode
from reconciling import (
    DAY,
    HOUR,
    LOST_READ,
    MINUTE,
    at,
    figures,
    kept,
    later,
    lose,
    minute_of,
    only_one,
    reads,
    reconcile,
)
from world import World


def test_what_is_sent_while_totals_are_read_is_no_difference(ada: World) -> None:
    """A report runs at the same time: Stripe's answer is older than the ledger's."""
    ada.usage("ada", 3, ago=DAY)
    ada.run()
    later(ada)

    def report() -> None:
        ada.usage("ada", 4, ago=DAY)
        ada.run()

    document = reconcile(ada, after_read=report)
    assert {difference.cause for difference in document.differences} == {Cause.NOT_YET_CAUGHT_UP}
    assert document.exit_code is ExitCode.OK


def test_a_long_range_is_read_page_by_page(ada: World) -> None:
    ada.usage("ada", 3, ago=30 * DAY)
    ada.run()
    ada.time.advance(250 * DAY)
    midnight = ada.time.now().replace(hour=0)
    ada.stripe.set_options(zero_usage="zero_row")
    document = reconcile(ada, span=Span(start=midnight - 300 * DAY, end=midnight))
    assert (document.differences, document.counts()["reads"], document.plan.reads_each) == ([], 3, 3)


def test_the_longest_unproven_come_first_and_the_others_are_left(ada: World) -> None:
    for name in ("ada", "bob", "eve"):
        if name != "ada":
            ada.customer(name)
        ada.usage(name, 1, ago=2 * DAY)
    ada.run()
    later(ada)
    first = reconcile(ada, reads_max=5)
    assert first.counts() == {"customers": 2, "equal": 2, "different": 0, "left": 1, "reads": 4}
    eves = minute_of(next(event for event in ada.events() if event["customer"] == "cus_eve"))
    assert figures(ada).proven_up_to == eves.start, "who is left is not proven"
    ada.time.advance(MINUTE)
    reconcile(ada, reads_max=2)
    assert [row["customer"] for row in kept(ada)] == ["cus_ada", "cus_bob", "cus_eve"]
    assert figures(ada).proven_up_to == at(ada, timedelta(minutes=76))


def test_without_reads_to_narrow_the_day_is_named_and_how_to_go_on(new_ada: World) -> None:
    lose(new_ada, "ada", 3, ago=2 * DAY)
    later(new_ada)
    difference = only_one(reconcile(new_ada, reads_max=2))
    assert (difference.cause, difference.span.length) == (Cause.SHORTFALL, DAY)
    assert difference.command is not None
    assert difference.command.startswith("meterctl reconcile --meter ai_suggestion --customer cus_ada --since 2026")
    difference = only_one(reconcile(new_ada, span=difference.span, reads_max=2))
    assert difference.span.length == HOUR
    assert only_one(reconcile(new_ada, span=difference.span)).span.length == MINUTE


def test_what_was_found_before_stripe_went_away_is_kept(ada: World) -> None:
    ada.customer("bob")
    for name in ("ada", "bob"):
        ada.usage(name, 1, ago=2 * DAY)
    ada.run()
    later(ada)
    count = 0

    def go_away() -> None:
        nonlocal count
        count += 1
        if count == 2:
            ada.stripe.add_fault(LOST_READ)

    document = reconcile(ada, after_read=go_away)
    assert document.exit_code is ExitCode.UNAVAILABLE
    assert document.counts() == {"customers": 1, "equal": 1, "different": 0, "left": 1, "reads": 3}
    assert [row["customer"] for row in kept(ada)] == ["cus_ada"]


def test_a_difference_is_kept_though_it_could_not_be_narrowed(new_ada: World) -> None:
    lose(new_ada, "ada", 3, ago=2 * DAY)
    later(new_ada)
    count = 0

    def go_away() -> None:
        nonlocal count
        count += 1
        if count == 3:
            new_ada.stripe.add_fault(LOST_READ)

    document = reconcile(new_ada, after_read=go_away)
    assert (only_one(document).span.length, document.exit_code) == (HOUR, ExitCode.UNAVAILABLE)
    assert len(kept(new_ada)[0]["differences"]) == 1


def test_an_outage_ends_it_after_three_customers(ada: World) -> None:
    for n in range(6):
        ada.customer(f"c{n}")
        ada.usage(f"c{n}", 1)
    ada.run()
    later(ada)
    ada.stripe.add_fault(LOST_READ)
    document = reconcile(ada)
    assert (document.counts()["left"], reads(ada), document.exit_code) == (6, 3, ExitCode.UNAVAILABLE)


def test_two_comparisons_of_one_customer_leave_one_latest(ada: World) -> None:
    ada.usage("ada", 3, ago=DAY)
    ada.run()
    later(ada)
    reconcile(ada)
    reconcile(ada)
    assert [row["latest"] for row in kept(ada)] == [False, True]


def test_single_customers_that_cannot_be_read_hold_up_no_other(ada: World) -> None:
    names = [f"c{n}" for n in range(8)]
    for name in names:
        ada.customer(name)
        ada.usage(name, 1)
    ada.run()
    later(ada)
    document = reconcile(ada, unreadable=tuple(f"cus_{name}" for name in names[::2]))
    assert (document.counts()["equal"], document.left_count, document.exit_code) == (4, 4, ExitCode.UNAVAILABLE)


@pytest.mark.parametrize("read_count", [2, 3, 4, 5, 6, 7, 8])
def test_what_moves_while_it_is_read_has_not_caught_up(ada: World, read_count: int) -> None:
    """They lag longer than ever seen, and catch up between two reads, whichever these are."""
    ada.stripe.set_options(summary_lag_s=5 * 3600)
    for n in range(60):
        ada.usage("ada", 3, created_at=at(ada, DAY) + n * MINUTE)
    ada.run()
    later(ada)
    assert {difference.cause for difference in reconcile(ada).differences} == {Cause.SHORTFALL}
    count = 0

    def catch_up() -> None:
        nonlocal count
        count += 1
        if count == read_count:
            ada.stripe.set_options(summary_lag_s=0)

    causes = {difference.cause for difference in reconcile(ada, after_read=catch_up).differences}
    assert Cause.NOT_YET_CAUGHT_UP in causes
    assert Cause.FOREIGN_WRITER not in causes
    assert reconcile(ada).differences == []
