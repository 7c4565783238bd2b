"""The application's table of subscriptions says what Stripe's events tell, whatever order and company they come in."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any

import psycopg
import pytest

from meterctl.core.stripe_event import StripeEvent
from meterctl.errors import InputError
from meterctl.postgres.connect import connect, transaction
from meterctl.postgres.subscriptions import SubscriptionHandler
from meterctl.settings import load_settings
from meterctl.settings.webhooks import SubscriptionsSettings
from subscription_events import BASE, DAY, changed, checkout, deleted, event, old_subscription, payment_failed

COLUMNS = (
    "stripe_subscription_id, stripe_customer_id, user_id, organization_id, status, started_at, ended_at,"
    " current_period_start, current_period_end, stripe_event_at"
)


def second(at: int) -> datetime:
    return datetime.fromtimestamp(BASE + at, UTC)


def shipped() -> SubscriptionsSettings:
    settings = load_settings(config_file=None, environ={}, flags={}, require_database=False)
    assert settings.webhooks.subscriptions is not None
    return settings.webhooks.subscriptions


@dataclass
class Table:
    """The shipped table, and a handler that has each event in a transaction of its own."""

    connection: psycopg.Connection
    settings: SubscriptionsSettings

    def handle(self, *events: StripeEvent) -> list[str]:
        handler = SubscriptionHandler(self.connection, self.settings)
        outcomes = []
        for one in events:
            with transaction(self.connection):
                outcomes.append(handler.handle(one))
        return outcomes

    def rows(self, columns: str = COLUMNS) -> list[tuple[Any, ...]]:
        """All rows, in an order of their contents."""
        rows = self.connection.execute(f"SELECT {columns} FROM subscriptions").fetchall()  # noqa: S608 -- our words
        return sorted(rows, key=repr)

    def row(self, columns: str) -> tuple[Any, ...]:
        (row,) = self.rows(columns)
        return row

    def insert(self, **values: Any) -> None:
        """A row of the application's own."""
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        text = f"INSERT INTO subscriptions ({names}) VALUES ({places})"  # noqa: S608 -- a test's own words
        self.connection.execute(text, list(values.values()))

    def facts(self) -> int:
        row = self.connection.execute("SELECT count(*) FROM meterctl.subscription_facts").fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as opened:
        opened.execute("SET TimeZone = 'UTC'")
        yield opened


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection, shipped())


ADA = ("sub_1", "cus_ada", "ada", None)


# What each event does


def test_a_subscription_becomes_a_row_once_its_subject_is_known(table: Table) -> None:
    assert table.handle(changed(at=1, verb="created")) == [
        "active until 2026-11-19T11:06:40Z; waits for checkout.session.completed"
    ]
    assert table.rows() == []
    assert table.handle(checkout(at=2)) == ["active until 2026-11-19T11:06:40Z"]
    assert table.rows() == [(*ADA, "active", second(0), None, second(0), second(DAY), second(1))]


def test_a_checkout_waits_for_its_subscription(table: Table) -> None:
    assert table.handle(checkout(at=2)) == ["waits for customer.subscription.created"]
    assert table.rows() == []
    table.handle(changed(at=1, verb="created"))
    assert table.row("user_id, status, stripe_event_at") == ("ada", "active", second(1))


def test_an_organization_subscribes(table: Table) -> None:
    session = checkout(at=2, client_reference_id="acme", metadata={"organization_id": "acme"})
    table.handle(changed(at=1), session)
    assert table.row("user_id, organization_id") == (None, "acme")


def test_an_update_changes_status_and_period(table: Table) -> None:
    table.handle(checkout(at=1), changed("trialing", at=1))
    new = {"data": [{"current_period_start": BASE + DAY, "current_period_end": BASE + 2 * DAY}]}
    assert table.handle(changed("active", at=5, items=new)) == ["active until 2026-11-20T11:06:40Z"]
    found = table.row("status, current_period_start, current_period_end, stripe_event_at")
    assert found == ("active", second(DAY), second(2 * DAY), second(5))


def test_an_older_payload_tells_the_same(table: Table) -> None:
    table.handle(checkout(at=1), event("customer.subscription.updated", old_subscription(), at=1))
    assert table.rows() == [(*ADA, "active", second(0), None, second(0), second(DAY), second(1))]


def test_a_deletion_ends_it(table: Table) -> None:
    table.handle(checkout(at=1), changed(at=1))
    assert table.handle(deleted(at=9)) == ["canceled since 2026-11-18T11:06:49Z"]
    assert table.row("status, ended_at") == ("canceled", second(9))


def test_a_failed_payment_makes_it_past_due_until_it_is_paid(table: Table) -> None:
    table.handle(checkout(at=1), changed(at=1))
    assert table.handle(payment_failed(at=5)) == ["past_due until 2026-11-19T11:06:40Z"]
    assert table.row("status, stripe_event_at") == ("past_due", second(1))
    assert table.handle(changed("active", at=6)) == ["active until 2026-11-19T11:06:40Z"]
    assert table.row("status") == ("active",)


def test_a_failed_payment_does_not_revive_what_has_ended(table: Table) -> None:
    table.handle(checkout(at=1), deleted(at=5), payment_failed(at=6))
    assert table.row("status, ended_at") == ("canceled", second(5))


def test_an_older_event_changes_nothing(table: Table) -> None:
    table.handle(checkout(at=1), deleted(at=5))
    before = table.rows()
    assert table.handle(changed(at=4), changed(at=3, verb="created")) == ["older than what is known"] * 2
    assert table.rows() == before


def test_a_checkout_of_nobody_is_unmapped(table: Table) -> None:
    assert table.handle(checkout(at=1, client_reference_id=None)) == ["unmapped"]
    assert (table.rows(), table.facts()) == ([], 0)


def test_what_is_not_about_a_subscription_leaves_no_trace(table: Table) -> None:
    about = checkout(at=1, mode="payment", subscription=None), payment_failed(at=1, of=None)
    assert table.handle(*about) == ["not about a subscription"] * 2
    assert (table.rows(), table.facts()) == ([], 0)


def test_two_subscriptions_of_a_customer_are_two_rows(table: Table) -> None:
    table.handle(checkout(at=1), changed(at=1), checkout(at=2, subscription="sub_2"), changed(at=2, of="sub_2"))
    table.handle(deleted(at=5))
    assert table.rows("stripe_subscription_id, status") == [("sub_1", "canceled"), ("sub_2", "active")]


# Rows that are there


def test_a_row_of_the_application_is_known_by_its_subscription(table: Table) -> None:
    table.insert(stripe_subscription_id="sub_1", stripe_customer_id="cus_ada", user_id="ada")
    table.handle(changed("trialing", at=1))
    assert table.row("user_id, status, current_period_end") == ("ada", "trialing", second(DAY))


def test_the_only_row_of_a_customer_without_a_subscription_is_taken(table: Table) -> None:
    table.insert(stripe_customer_id="cus_ada", user_id="ada")
    table.insert(stripe_customer_id="cus_bob", user_id="bob")
    table.handle(changed("trialing", at=1))
    known = [("cus_ada", "sub_1", "trialing"), ("cus_bob", None, "active")]
    assert table.rows("stripe_customer_id, stripe_subscription_id, status") == known


def test_of_several_rows_without_a_subscription_none_is_taken(table: Table) -> None:
    table.insert(stripe_customer_id="cus_ada", user_id="ada")
    table.insert(stripe_customer_id="cus_ada", organization_id="acme")
    before = table.rows()
    table.handle(changed("trialing", at=1))
    assert table.rows() == before


def test_several_rows_of_one_subscription_are_refused(table: Table) -> None:
    table.insert(stripe_subscription_id="sub_1", user_id="ada")
    table.insert(stripe_subscription_id="sub_1", user_id="bob")
    with pytest.raises(InputError, match="subscriptions has several rows of sub_1"):
        table.handle(changed(at=1))
    assert table.facts() == 0


def test_a_failed_payment_counts_for_a_row_of_which_nothing_else_is_known(table: Table) -> None:
    assert table.handle(payment_failed(at=1, of="sub_2")) == ["waits for customer.subscription.created"]
    table.insert(stripe_subscription_id="sub_1", stripe_customer_id="cus_ada", user_id="ada")
    assert table.handle(payment_failed(at=1)) == ["past_due"]
    assert table.row("user_id, status") == ("ada", "past_due")


@pytest.mark.parametrize("never", ["infinity", None])
def test_a_row_that_ended_stays_so(table: Table, never: str | None) -> None:
    """Whatever the application writes for what has not ended."""
    table.insert(stripe_subscription_id="sub_1", stripe_customer_id="cus_ada", ended_at=second(1))
    assert table.handle(payment_failed(at=2)) == ["the row stays as it is: it is newer, or has ended"]
    assert table.row("status") == ("active",)
    table.connection.execute("UPDATE subscriptions SET ended_at = %s, stripe_event_at = '-infinity'", [never])
    assert table.handle(payment_failed(at=3)) == ["past_due"]


def test_what_the_application_wrote_later_stays(table: Table) -> None:
    written = {"stripe_subscription_id": "sub_1", "stripe_customer_id": "cus_ada", "status": "canceled"}
    table.insert(**written, stripe_event_at=second(6))
    outcomes = table.handle(changed(at=5), payment_failed(at=7), checkout(at=8))
    kept = "the row stays as it is: it is newer, or has ended"
    assert outcomes == [kept] * 3
    assert table.rows() == [(*ADA, "canceled", None, None, None, None, second(6))]
    table.handle(changed(at=9))
    assert table.row("status, stripe_event_at") == ("active", second(9))


def test_the_newest_event_once_more_mends_the_row(table: Table) -> None:
    """As `webhooks replay --force` does after somebody changed the row by hand."""
    table.handle(checkout(at=1), changed(at=1))
    table.connection.execute("UPDATE subscriptions SET status = 'mistaken'")
    table.handle(changed(at=1))
    assert table.row("status") == ("active",)


# Order and company


def history(seed: int) -> list[StripeEvent]:
    """Two subscriptions of a customer, told in many events, some of the same second."""
    chance = random.Random(seed)  # noqa: S311 -- a seed to repeat it by
    told = []
    for name in ("sub_1", "sub_2"):
        told.append(checkout(at=chance.randint(0, 2), subscription=name))
        for number in range(5):
            at, id_ = chance.randint(0, 3), f"evt_{name}_{number}"
            kinds: list[Callable[[], StripeEvent]] = [
                lambda: changed(chance.choice(["active", "trialing", "unpaid"]), at=at, of=name, id=id_),  # noqa: B023 -- called here
                lambda: payment_failed(at=at, of=name, id=id_),  # noqa: B023 -- called here
                lambda: deleted(at=at, of=name, id=id_),  # noqa: B023 -- called here
            ]
            told.append(chance.choices(kinds, weights=[4, 2, 1])[0]())
    return told


@pytest.mark.parametrize("seed", range(4))
def test_any_order_with_repetitions_ends_in_the_same_rows(table: Table, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- a seed to repeat it by
    told = history(seed)
    ends = []
    for _ in range(12):
        table.connection.execute("TRUNCATE subscriptions, meterctl.subscription_facts")
        if seed % 2:  # a row of the application's, newer than some of the events
            table.insert(stripe_subscription_id="sub_1", stripe_customer_id="cus_ada", stripe_event_at=second(1))
        disorder = told + chance.choices(told, k=len(told))
        chance.shuffle(disorder)
        table.handle(*disorder)
        ends.append(table.rows())
    assert ends[0]
    assert all(end == ends[0] for end in ends)


def test_two_processes_with_events_of_one_subscription_wait_for_each_other(database_url: str, table: Table) -> None:
    """Else both would find no row, and each make one; or the older event would be the last to write."""
    table.handle(checkout(at=0))
    written, waiting = Event(), Event()

    def first() -> None:
        with connect(database_url) as connection, transaction(connection):
            SubscriptionHandler(connection, shipped()).handle(changed("past_due", at=2))
            written.set()
            assert waiting.wait(10)

    def second_() -> str:
        assert written.wait(10)
        with connect(database_url) as connection, transaction(connection):
            pid = connection.info.backend_pid
            pool.submit(until_blocked, pid)
            return SubscriptionHandler(connection, shipped()).handle(changed("active", at=1))

    def until_blocked(pid: int) -> None:
        with connect(database_url) as connection:
            while connection.execute("SELECT pg_blocking_pids(%s) = '{}'", [pid]).fetchone() == (True,):
                time.sleep(0.01)
        waiting.set()

    with ThreadPoolExecutor(4) as pool:
        one, other = pool.submit(first), pool.submit(second_)
        one.result(20)
        assert other.result(20) == "older than what is known"
    assert table.row("status, stripe_event_at") == ("past_due", second(2))


# Tables of other shapes

OWN = """
CREATE SCHEMA "Shop";
CREATE TABLE "Shop"."Plan" (
    "stripe%Id" text PRIMARY KEY, "cus""tomer" text NOT NULL, "orgId" bigint NOT NULL,
    "State" text NOT NULL DEFAULT 'new', note text DEFAULT 'mine'
);
"""


def test_names_of_any_kind_and_only_what_is_mapped(connection: psycopg.Connection) -> None:
    connection.execute(OWN)
    names = {"subscription": "stripe%Id", "customer": 'cus"tomer', "organization": "orgId", "status": "State"}
    table = Table(connection, SubscriptionsSettings(table="Shop.Plan", **names))
    table.handle(changed(at=1), payment_failed(at=2), checkout(at=3, client_reference_id="42"), deleted(at=4))
    (row,) = connection.execute('SELECT * FROM "Shop"."Plan"').fetchall()
    assert row == ("sub_1", "cus_ada", 42, "canceled", "mine")


def test_a_table_without_subjects_waits_for_no_checkout(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE payers (sub text, cus text)")
    table = Table(connection, SubscriptionsSettings(table="payers", subscription="sub", customer="cus"))
    assert table.handle(checkout(at=1), changed(at=1)) == ["unmapped", "active until 2026-11-19T11:06:40Z"]
    assert connection.execute("SELECT * FROM payers").fetchall() == [("sub_1", "cus_ada")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ADD COLUMN plan text NOT NULL", 'null value in column "plan"'),
        ("ADD CONSTRAINT known CHECK (user_id <> 'ada')", 'violates check constraint "known"'),
        ("ALTER COLUMN user_id TYPE uuid USING NULL", "invalid input syntax for type uuid"),
    ],
)
def test_a_row_that_the_table_refuses_leaves_nothing(table: Table, change: str, said: str) -> None:
    """The facts neither: once the cause is mended, the same event is news again."""
    table.handle(checkout(at=1))
    table.connection.execute(f"ALTER TABLE subscriptions {change}")
    with pytest.raises(InputError, match=f"subscriptions refuses the row: .*{said}"):
        table.handle(changed(at=2))
    assert table.rows() == []
    kept = table.connection.execute("SELECT facts ? 'snapshot' FROM meterctl.subscription_facts").fetchall()
    assert kept == [(False,)]
