"""Differences that reconcile might not see or explain wrongly, hints that might not help, proof given too early."""

import shlex
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import psycopg
import pytest

from meterctl.core.reconciliation import Cause, Difference
from meterctl.core.spans import Span
from meterctl.errors import ExitCode
from meterctl.postgres.forget import find_forgettable
from meterctl.postgres.forgetting import forget
from meterctl.postgres.ledger_admin import retry
from meterctl.postgres.recover import adopt_copy
from meterctl.postgres.settlements import put_in_doubt
from meterctl.sandbox.local_stripe import Fault, FaultKind, LocalStripe
from reconciling import DAY, HOUR, MINUTE, at, figures, later, lose, minute_of, reconcile
from world import World


def doubt(world: World, event_id: int = 1) -> None:
    """`meterctl ledger doubt`."""
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        unstamp = world.rows_source(connection).unstamp
        assert put_in_doubt(connection, [event_id], "Stripe has less", unstamp_rows=unstamp) == [event_id]


def stamped(world: World) -> list[bool]:
    return [
        row["is"] for row in world.rows('SELECT stripe_reported_at IS NOT NULL AS "is" FROM usage_events ORDER BY id')
    ]


@pytest.fixture
def lost(world: World) -> World:
    """Stripe has dropped 3 units that it took a day ago."""
    world.customer("ada", known=False)
    lose(world, "ada", 3, ago=DAY)
    later(world)
    return world


# What is proven


def test_a_shortfall_that_was_put_in_doubt_is_not_proven_equal(lost: World) -> None:
    """Neither side counts the unit then, and the customer is not billed for it."""
    lost.usage("ada", 1)
    lost.run()
    later(lost)
    doubt(lost)
    assert reconcile(lost).differences == []
    assert figures(lost).proven_up_to == minute_of(lost.events()[0]).start


@pytest.mark.parametrize("fault", [FaultKind.RATE_LIMITED, FaultKind.RESET])
def test_what_is_due_or_in_doubt_is_not_proven(world: World, fault: FaultKind) -> None:
    world.customer("ada")
    world.usage("ada", 3, ago=DAY)
    world.run()
    world.usage("ada", 4, ago=5 * DAY)
    world.stripe.add_fault(Fault(kind=fault, times=None))
    world.run()
    later(world)
    assert reconcile(world).differences == []
    assert figures(world).proven_up_to == minute_of(world.events()[-1]).start


# Whom it reads


def test_customers_whose_totals_stripe_refuses_starve_nobody(world: World) -> None:
    """They are always the longest unproven, so they always come first."""
    for n in range(6):
        world.customer(f"c{n}")
        world.usage(f"c{n}", 1)
    world.run()
    later(world)
    for n in range(4):
        refused = Fault(kind=FaultKind.BAD_REQUEST, operation="event_summaries.list", customer=f"cus_c{n}", times=None)
        world.stripe.add_fault(refused)
    document = reconcile(world)
    assert (document.counts()["equal"], document.left_count, document.exit_code) == (2, 4, ExitCode.UNAVAILABLE)


def test_what_the_original_of_a_copy_billed_is_on_other_books(world: World) -> None:
    """Else all of it were a shortfall, and `ledger doubt` would bill it to the copy's account."""
    world.customer("ada")
    world.usage("ada", 3, ago=DAY)
    world.run()
    later(world)
    reconcile(world)
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        adopt_copy(connection, "a copy")
    with LocalStripe(clock=world.time.now) as other:
        other.set_options(account_id="acct_copy")
        other.create_meter(event_name="ai_suggestion")
        other.create_customer("cus_ada")
        world.stripe = other
        world.usage("ada", 2, ago=2 * HOUR)
        world.run()
        assert figures(world).proven_up_to is None
        later(world)
        document = reconcile(world)
    assert (document.differences, document.sides[0].comparisons[0].ledger_total) == ([], 2)
    assert figures(world).proven_up_to == at(world, 75 * MINUTE)


# A meter that was deactivated in Stripe, and made anew under its event_name


def make_anew(world: World) -> None:
    (meter,) = world.stripe.meters()
    world.stripe.deactivate_meter(meter.id)
    world.stripe.create_meter(event_name="ai_suggestion")


def test_what_the_former_meter_took_is_no_shortfall(world: World) -> None:
    world.customer("ada")
    world.usage("ada", 3, ago=DAY)
    world.run()
    make_anew(world)
    world.usage("ada", 2, ago=DAY)
    world.run()
    later(world)
    assert reconcile(world).differences == []


def test_what_the_former_meter_took_is_not_absent(world: World) -> None:
    world.customer("ada")
    world.usage("ada", 3)
    world.stripe.add_fault(Fault(kind=FaultKind.LOST_ANSWER, times=None))
    world.run()
    world.stripe.clear_faults()
    make_anew(world)
    world.time.advance(25 * HOUR)
    for _ in range(3):
        world.time.advance(61 * MINUTE)
        world.run()
    assert (world.states(), world.stripe_total()) == (["accepted"], 3)


# After `ledger doubt`


def test_a_doubted_row_can_be_retried_when_it_is_rejected_after_all(lost: World) -> None:
    doubt(lost)
    for _ in range(2):
        lost.time.advance(61 * MINUTE)
        lost.settle()
    lost.stripe.add_fault(Fault(kind=FaultKind.BAD_REQUEST, operation="meter_events.create"))
    lost.run()
    assert lost.states() == ["rejected"]
    with psycopg.connect(lost.database_url, autocommit=True) as connection:
        source = lost.rows_source(connection)
        assert retry(connection, [1], source, "ai_suggestion", "mended", lost.time.now()).refused == {}
    lost.run()
    assert (lost.states(), lost.stripe_total(), stamped(lost)) == (["replaced", "accepted"], 3, [True])


def test_a_doubted_row_is_free_when_test_mode_is_left(lost: World) -> None:
    """It would bear the stamp of a test for good, and never be billed."""
    doubt(lost)
    with psycopg.connect(lost.database_url, autocommit=True) as connection:
        forget(connection, find_forgettable(connection, lost.settings()).parts)
    assert (lost.events(), stamped(lost)) == ([], [False])


def test_a_doubt_proven_present_is_stamped_again(world: World) -> None:
    world.customer("ada")
    world.usage("ada", 3, ago=DAY)
    world.run()
    doubt(world)
    assert stamped(world) == [False]
    for _ in range(3):
        world.time.advance(61 * MINUTE)
        world.run()
    assert (world.states(), world.stripe_total(), stamped(world)) == (["accepted"], 3, [True])


def test_a_predecessors_stamp_stays(lost: World) -> None:
    lost.connection.execute("UPDATE usage_events SET stripe_reported_at = stripe_reported_at - interval '1 minute'")
    doubt(lost)
    assert stamped(lost) == [True]


# Commands that hints print


@pytest.mark.parametrize("state", ["rejected", "waived", "expired"])
def test_the_list_shows_what_stripe_counts_and_the_ledger_does_not(world: World, state: str) -> None:
    world.customer("ada")
    world.usage("ada", 3)
    world.run()
    world.connection.execute(
        "UPDATE meterctl.meter_events SET state = %s, accepted_at = NULL, settled_by = NULL, closed_reason = 'x',"
        " error_code = 'resource_missing'",
        [state],
    )
    later(world)
    (difference,) = reconcile(world).differences
    assert difference.cause is Cause.REJECTED_AFTERWARDS
    words = shlex.split(difference.command or "")
    asked = {value for option, value in pairwise(words) if option == "--state"}
    assert state in asked
    assert words[-4:] == ["--since", "2026-11-21T01:00:00Z", "--until", "2026-11-21T01:01:00Z"]


SHORTFALL = Difference(
    event_name="m",
    customer="cus_1",
    span=Span(start=datetime(2026, 11, 21, tzinfo=UTC), end=datetime(2026, 11, 21, 0, 1, tzinfo=UTC)),
    ledger_total=Decimal(1),
    stripe_total=Decimal(0),
    cause=Cause.SHORTFALL,
)


@pytest.mark.parametrize(
    ("customer", "word"),
    [
        ("cus_1", "cus_1"),
        ("a b'c", "'a b'\\''c'"),
        ("a\nb", "$'a\\U0000000ab'"),
        ("a\\'\x85", "$'a\\\\\\'\\U00000085'"),
        ("é\u200b", "$'é\\U0000200b'"),
    ],
)
def test_odd_names_survive_the_shell(customer: str, word: str) -> None:
    assert f" --customer {word} " in (replace(SHORTFALL, customer=customer).command or "")
