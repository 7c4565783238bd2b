"""Counted usage under attack: late commits, two at once, roles, odd statements, what leaves the outbox too early."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integration.test_counting import CONFIG, KEY, adopt, counters, recorded, settings
from meterctl.actions.collect import row_window
from meterctl.actions.preview import preview
from meterctl.errors import ExitCode
from meterctl.postgres.connect import connect
from meterctl.postgres.counter import PostgresCounter
from meterctl.postgres.counting import plan_counting, uncounted
from meterctl.postgres.forget import find_forgettable
from meterctl.postgres.forgetting import forget
from meterctl.postgres.settlements import put_in_doubt
from meterctl.postgres.usage_queries import LedgerOwner
from metered_devices import COUNTER, GAUGE, open_devices, organisation, record, sent
from roles import as_role, open_roles
from world import World

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def devices(database_url: str) -> Iterator[World]:
    with open_devices(database_url) as world:
        world.config |= {f"meters.{GAUGE}.enabled": False}
        yield world


@pytest.fixture
def app(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The application's own connection."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


# Time


def test_usage_of_the_next_period_is_not_late_for_the_last_one(devices: World) -> None:
    """The subscriptions table lags behind: nobody must bill it by hand."""
    now = devices.time.now()
    organisation(devices, "acme", current_period_start=now - 40 * DAY, current_period_end=now - 10 * DAY)
    record(devices, "acme", 5, at=now - 3 * HOUR)
    result = devices.run()
    assert (result.exit_code, result.totals.late) == (ExitCode.OK, 0)


def test_what_commits_late_is_billed_late_whatever_its_id(devices: World) -> None:
    organisation(devices, "acme")
    hour = devices.time.now() - 2 * HOUR
    with psycopg.connect(devices.database_url) as slow:
        slow.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        slow.execute(
            "INSERT INTO meterctl.usage_outbox (meter, subject, quantity, occurred_at) VALUES (%s, 'acme', 7, %s)",
            [COUNTER, hour],
        )
        record(devices, "acme", 1, at=hour)
        devices.run()
        slow.commit()
    devices.run()
    assert [value for _, value, _ in sent(devices, COUNTER)] == [1, 7]


def test_an_hour_of_many_rows_is_collected_before_anybody_analysed_them(devices: World) -> None:
    """Where each row reads all answers of the lookups, these take ten minutes."""
    subscriptions = "INSERT INTO subscriptions (organization_id, stripe_customer_id) VALUES ('acme', 'cus_acme')"
    devices.connection.execute(subscriptions)
    devices.stripe.create_customer("cus_acme")
    devices.connection.execute(
        "INSERT INTO meterctl.usage_outbox (meter, subject, quantity, occurred_at)"
        " SELECT %s, 'acme', 1, %s + n * interval '100 milliseconds' FROM generate_series(1, 20000) AS n",
        [COUNTER, devices.time.now() - 2 * HOUR],
    )
    assert devices.run().totals.units == 20_000


# Two at once


@pytest.mark.parametrize("first_commits", [True, False])
def test_a_key_in_two_transactions_counts_once(
    app: psycopg.Connection[Any], database_url: str, *, first_commits: bool
) -> None:
    text = f"SELECT meterctl.record_usage('{KEY}', 'acme', 5, now() - interval '1 hour', 'k')"
    answers = []

    def another() -> None:
        with psycopg.connect(database_url, autocommit=True) as other:
            answers.append(other.execute(text).fetchone())

    with psycopg.connect(database_url) as first:
        first.execute(text)
        second = threading.Thread(target=another)
        second.start()
        while not app.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
            time.sleep(0.01)
        (first.commit if first_commits else first.rollback)()
        second.join()
    assert answers == [(not first_commits,)]
    assert recorded(app) == {"acme": 5}


# What leaves the outbox


def test_forgetting_a_test_makes_usage_of_weeks_due_again(devices: World) -> None:
    """A rehearsal of three weeks, then the first night: as with rows, all that Stripe still takes is billed."""
    organisation(devices, "acme")
    record(devices, "acme", 5, at=devices.time.now() - 2 * HOUR)
    devices.run()
    devices.time.advance(21 * DAY)
    devices.run()
    with connect(devices.database_url) as connection:
        assert forget(connection, find_forgettable(connection, devices.settings()).parts).left_test_mode
    backlog = devices.source(COUNTER).backlog
    window = row_window(devices.time.now(), recent=None)
    assert (found := backlog(window)) is not None
    assert found.row_count == 1


def test_in_live_mode_done_usage_leaves_as_configured(devices: World) -> None:
    organisation(devices, "acme")
    record(devices, "acme", 5, at=devices.time.now() - 2 * HOUR)
    devices.run()
    settings_, now = devices.settings(), devices.time.now()
    with connect(devices.database_url) as connection:
        meter = counters(settings_)[COUNTER]
        owner = LedgerOwner(account="acct_1", livemode=True)
        source = PostgresCounter(connection, COUNTER, meter, settings_.lookups, owner)
        assert (source.tidy(now + 7 * DAY), source.tidy(now + 7 * DAY + HOUR)) == (0, 1)


def test_what_is_in_doubt_again_needs_its_rows_no_more(devices: World) -> None:
    organisation(devices, "acme")
    record(devices, "acme", 5, at=devices.time.now() - 2 * HOUR)
    devices.run()
    devices.time.advance(36 * DAY)
    devices.run()
    assert devices.rows("SELECT FROM meterctl.usage_outbox") == []
    with connect(devices.database_url) as connection:
        put_in_doubt(connection, [1], "a shortfall", unstamp_rows=lambda _: 0)
    for _ in range(2):
        devices.run()
        devices.time.advance(2 * HOUR)
    assert (devices.states(), devices.stripe_total()) == (["accepted"], 5)


# What is said


def test_the_dry_run_says_of_everything_what_a_run_says(devices: World) -> None:
    organisation(devices, "free", pays=False)
    organisation(devices, "acme")
    organisation(devices, "nobody", stripe_customer_id=None)
    now = devices.time.now()
    for name in ("free", "acme", "nobody"):
        for ago in (timedelta(minutes=1), 2 * HOUR, 3 * HOUR, 36 * DAY, 71 * DAY):
            record(devices, name, 5, at=now - ago)
    plan, done = preview(COUNTER, devices.source(COUNTER), now, recent=None), devices.run().totals
    assert (plan.events, plan.units) == (done.reported, done.units)
    for name in ("skipped", "rejected", "expired"):
        assert getattr(plan.tally, name) == getattr(done, name)
    assert {key: one.count for key, one in plan.tally.problems.items()} == {
        key: one.count for key, one in done.problems.items()
    }


@pytest.mark.parametrize("quantity", ["0.5", str(10**15)])
def test_what_cannot_be_sent_is_not_to_be_retried_in_the_ledger(devices: World, quantity: str) -> None:
    """Nothing of it is there."""
    organisation(devices, "acme")
    record(devices, "acme", Decimal(quantity), at=devices.time.now() - 2 * HOUR)
    (problem,) = devices.run().totals.problems.values()
    assert problem.hint == "mend the cause; the next report takes it"
    assert devices.events() == []


# The trigger


def test_a_table_that_is_not_counted_is_named_every_night(devices: World) -> None:
    """It was rebuilt under its name, or somebody switched the trigger off: what is inserted is lost."""
    devices.connection.execute(f"ALTER TABLE readings DISABLE TRIGGER meterctl_{COUNTER}")
    plan = preview(COUNTER, devices.source(COUNTER), devices.time.now(), recent=None)
    result = devices.run()
    assert result.exit_code is ExitCode.PROBLEMS
    assert "readings" in result.totals.problems["uncounted"].sample_ids[0]
    assert plan.tally.problems == result.totals.problems


def test_only_who_may_count_can_own_the_function(
    app: psycopg.Connection[Any], database_url: str, tmp_path: Path
) -> None:
    """Else the application's next INSERT fails, or is not counted."""
    found = settings(tmp_path)
    with open_roles() as roles:
        role = roles.create(database_url)
        app.execute(f"GRANT USAGE, CREATE ON SCHEMA meterctl TO {role}; GRANT {role} TO CURRENT_USER")
        app.execute(f"ALTER TABLE readings OWNER TO {role}")
        try:
            with connect(as_role(database_url, role)) as connection:
                (obstacle,) = plan_counting(connection, found, counters(found)).obstacles
            assert f"GRANT INSERT ON meterctl.usage_outbox TO {role};" in obstacle
            app.execute(f"GRANT INSERT ON meterctl.usage_outbox TO {role}")
            adopt(as_role(database_url, role), found)
            app.execute(f"REVOKE INSERT ON meterctl.usage_outbox FROM {role}")
            with connect(database_url) as connection:
                assert uncounted(connection, KEY, counters(found)[KEY]) == [obstacle]
        finally:
            app.execute("ALTER TABLE readings OWNER TO CURRENT_USER")


def test_every_way_of_inserting_counts_once(app: psycopg.Connection[Any], database_url: str, tmp_path: Path) -> None:
    """In partitions with capitals; a row that an UPDATE moves to another one is not inserted."""
    app.execute(
        'CREATE SCHEMA "Plant"; CREATE TABLE "Plant"."Readings" ("Org" text, k int) PARTITION BY RANGE (k);'
        'CREATE TABLE "Plant"."R1" PARTITION OF "Plant"."Readings" FOR VALUES FROM (0) TO (10);'
        'CREATE TABLE "Plant"."R2" PARTITION OF "Plant"."Readings" FOR VALUES FROM (10) TO (20);'
    )
    text = CONFIG.replace('"readings"', '"Plant.Readings"').replace('"organization_id" }', '"Org" }')
    adopt(database_url, settings(tmp_path, text))
    insert = 'INSERT INTO "Plant"."Readings" '
    app.execute(MERGE if app.info.server_version >= MERGE_CAME_WITH else insert + "VALUES ('acme', 1), ('acme', 12)")
    assert recorded(app) == {"acme": 2}
    app.execute('UPDATE "Plant"."Readings" SET k = 15 WHERE k = 1')
    assert recorded(app) == {"acme": 2}
    more = insert + "VALUES ('acme', 2), ('b', 3) RETURNING *"
    app.execute("WITH more AS (" + more + ") " + insert + 'SELECT "Org", k + 10 FROM more')  # noqa: S608 -- a test's own words
    assert recorded(app) == {"acme": 4, "b": 2}


MERGE_CAME_WITH = 150_000
MERGE = """
MERGE INTO "Plant"."Readings" AS t USING (VALUES ('acme', 1), ('acme', 12)) AS v (o, k) ON t.k = v.k
WHEN NOT MATCHED THEN INSERT VALUES (v.o, v.k) WHEN MATCHED THEN UPDATE SET "Org" = v.o
"""
