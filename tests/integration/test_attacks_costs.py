"""What costs time and memory: a run stays within both, whatever the rows."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg

from meterctl.actions.meter_report import MeterJob
from meterctl.ports import ClaimRequest, Page
from meterctl.postgres.usage_queries import LedgerOwner
from several_meters import DAY, HOUR, Opened, job, run
from world import World


class Watched:
    """A source that counts its pages; each may take a while of the world's time."""

    def __init__(self, source: Any, world: World, *, page_takes: timedelta = timedelta(0)) -> None:
        self._source, self._world, self._page_takes = source, world, page_takes
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def collect(self, *arguments: Any, **named: Any) -> Page:
        self.pages += 1
        self._world.time.advance(self._page_takes)
        page: Page = self._source.collect(*arguments, **named)
        return page


def watching(world: World, seen: list[Watched], **options: Any) -> Opened:
    def opened(one: MeterJob) -> MeterJob:
        source = Watched(one.source, world, **options)
        seen.append(source)
        return replace(one, source=source)

    return opened


def free_rows(world: World, count: int) -> None:
    world.connection.execute(
        "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)"
        " SELECT 'ws', 'free', 1, %s::timestamptz + n * interval '1 second' FROM generate_series(1, %s) AS n",
        [world.time.now() - 10 * DAY, count],
    )


def test_a_small_limit_reads_free_rows_in_whole_pages(world: World) -> None:
    """`--limit 1` behind 2,000 rows of free users: four pages of 500, not 2,000 of one."""
    free_rows(world, 2_000)
    world.customer("ada")
    world.usage("ada")
    seen: list[Watched] = []
    assert run(world, opened=watching(world, seen), limit=1).totals.reported == 1
    assert seen[0].pages <= 10


def test_rows_to_look_at_leave_time_to_deliver(world: World) -> None:
    """Collecting alone uses up --max-duration, every night: what is in the ledger is delivered all the same."""
    free_rows(world, 200)
    world.customer("ada")
    world.usage("ada", 3, ago=11 * DAY)
    for _ in range(3):
        run(
            world,
            opened=watching(world, [], page_takes=timedelta(minutes=1)),
            batch_size=10,
            max_duration=timedelta(minutes=15),
        )
    assert world.stripe_total() == 3


def test_lanes_that_are_held_do_not_cost_a_small_limit_a_transaction_each(world: World) -> None:
    """500 lanes are held by the age of their doubt; `--limit 1` passes them by the hundred."""
    world.connection.execute(
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, source_row_id, state, ever_in_doubt, doubt_since, attempt_count, collected_at,"
        " livemode, account)"
        " SELECT 'ai_suggestion', 'ai_suggestion', 'held-' || n, 'a' || n, 1, 1, %(at)s, %(at)s, '{}', 'h' || n,"
        " 'in_doubt', true, %(at)s, 1, %(at)s, false, %(account)s FROM generate_series(1, 500) AS n",
        {"at": world.time.now() - 2 * DAY, "account": world.stripe.account_id},
    )
    world.customer("ada")
    world.usage("ada")
    ticks = 0

    class Counting:
        def __init__(self, ledger: Any) -> None:
            self._ledger = ledger

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ledger, name)

        def exchange(self, *arguments: Any, **named: Any) -> Any:
            nonlocal ticks
            ticks += 1
            return self._ledger.exchange(*arguments, **named)

    result = run(
        world,
        opened=lambda one: replace(one, ledger=Counting(one.ledger)),
        limit=1,
    )
    assert result.totals.reported == 1
    assert ticks <= 50


def test_a_claim_in_a_long_lane_reads_no_history(world: World) -> None:
    """One organisation pays for most: its claims go by the index of what is open, not through the ledger by id."""
    columns = (
        "INSERT INTO meterctl.meter_events (meter, event_name, identifier, customer, value, quantity, occurred_at,"
        " sent_timestamp, payload, source_row_id, state, accepted_at, settled_by, collected_at, livemode, account)"
        " SELECT 'ai_suggestion', 'ai_suggestion', %(name)s || n, 'cus_ada', 1, 1, %(at)s, %(at)s, '{}',"
        " %(name)s || n, %(state)s, %(accepted)s, %(by)s, %(at)s, false, 'acct' FROM generate_series(1, 20000) AS n"
    )
    at = world.time.now() - HOUR
    accepted = {"name": "old", "state": "accepted", "accepted": at, "by": "answer", "at": at}
    world.connection.execute(columns, accepted)
    world.connection.execute(columns, accepted | {"name": "new", "state": "pending", "accepted": None, "by": None})
    world.connection.execute("ANALYZE meterctl.meter_events")
    now = world.time.now()
    request = ClaimRequest(
        fresh_max=1,
        customers=("cus_ada",),
        scan_max=0,
        after_customer="",
        retry_ids=(),
        now=now,
        doubt_since=now,
        doubt_horizon=now - 23 * HOUR,
        expired_before=now - 35 * DAY,
    )
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        opened = job(world.settings(), connection, LedgerOwner(account="acct", livemode=False), 1, "ai_suggestion", {})
        assert len(opened.ledger.exchange([], request, now=now).claims) == 1
    read = "SELECT sum(idx_tup_read) AS n FROM pg_stat_user_indexes WHERE relname = 'meter_events'"
    while not (read_count := world.rows(read)[0]["n"]):  # a session hands in its counts when it ends, and not before us
        time.sleep(0.02)
    assert read_count < 1000
