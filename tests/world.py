"""A company in miniature: its database, its Stripe, and one clock for both that only moves when a test moves it.

Reports run in-process on the real adapters: real PostgreSQL, the real SDK over HTTP to the local Stripe, the serial
dispatcher. Waiting costs no time, so a test may let five attempts fail or a night pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
from psycopg.rows import dict_row

from meterctl.actions.meter_report import MeterJob, ReportOptions
from meterctl.actions.report import Report, ReportResult
from meterctl.actions.settle import Settlement, Settlements
from meterctl.actions.stripe_events import LISTED_FOR, Acting, Pull
from meterctl.cli.event_wiring import EventWiring, client_of
from meterctl.cli.meter_wiring import MeterWiring
from meterctl.cli.report_run import strays
from meterctl.clock import HostClock
from meterctl.core.allowance import Allowance
from meterctl.core.level import LevelRequest
from meterctl.core.model import Claim
from meterctl.core.pacing import TokenBucket
from meterctl.core.scope import Scope
from meterctl.dispatch import SerialDispatcher
from meterctl.ports import Acted, Dispatcher, MeterEvents, StopRequest, Totals, UsageSource
from meterctl.postgres.identity import claim_ledger
from meterctl.postgres.ledger import EVERYTHING, note_told, take_over
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.runs import finish_run, start_run
from meterctl.postgres.sources import Sources
from meterctl.postgres.stripe_events import EventSelection, event_store
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.settings import RowsMeter, Settings, load_settings
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.events import lists_of
from meterctl.stripe_api.single import SingleEvents
from meterctl.stripe_api.summaries import MeterSummaries

START = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


@dataclass(slots=True)
class VirtualTime:
    """One clock for everybody; `sleep` and `advance` move it at once."""

    instant: datetime = START

    def now(self) -> datetime:
        return self.instant

    def elapsed_s(self) -> float:
        return self.instant.timestamp()

    def wall_s(self) -> float:
        return self.instant.timestamp()

    def sleep(self, seconds: float) -> None:
        self.instant += timedelta(seconds=seconds)

    def advance(self, span: timedelta) -> None:
        self.instant += span


@dataclass(kw_only=True)
class World:
    """`run()` is a night; the other methods set the scene and look at what came of it."""

    database_url: str
    stripe: LocalStripe
    time: VirtualTime
    connection: psycopg.Connection[dict[str, Any]]
    config: dict[str, object] = field(default_factory=dict)
    wrap_events: Callable[[MeterEvents], MeterEvents] = lambda events: events
    wrap_totals: Callable[[Totals], Totals] = lambda totals: totals
    stop: StopRequest = field(default_factory=StopRequest)
    run_after_claim: Callable[[], None] = lambda: None
    wrap_connection: Callable[[psycopg.Connection], psycopg.Connection] = lambda connection: connection
    wrap_job: Callable[[MeterJob], MeterJob] = lambda job: job

    def settings(self) -> Settings:
        environ = {
            "DATABASE_URL": self.database_url,
            "STRIPE_SECRET_KEY": self.stripe.api_key,
            "METERCTL_STRIPE_API_BASE": self.stripe.url,
        }
        return load_settings(config_file=None, environ=environ, flags=self.config)

    def run(
        self,
        *,
        locked: bool = True,
        host_clock: HostClock | None = None,
        level: LevelRequest | None = None,
        open_too: bool = False,
        **options: Any,
    ) -> ReportResult:
        """Report all enabled meters once, as the command does, on a database connection of its own.

        Not `locked`: on a host that takes the lock to be its own though it is not.
        """
        settings = self.settings()
        asked = ReportOptions(**options)
        host_clock = host_clock or self.time
        owner = LedgerOwner(account=self.stripe.account_id, livemode=False)
        events = self.wrap_events(SingleEvents(stripe_client(settings.stripe, connections_max=1, read_timeout_s=1.0)))
        with psycopg.connect(self.database_url, autocommit=True) as opened:
            connection = self.wrap_connection(opened)
            claim_ledger(connection, owner, self.time.now())
            run_id = start_run(connection, "report", owner, self.time.now())
            sources = Sources(
                connection=connection, settings=settings, owner=owner, level=level or LevelRequest(), open_too=open_too
            )
            with self.locks() if locked else nullcontext(Everybodys()) as locks:
                report = Report(
                    options=asked,
                    livemode=False,
                    grace=timedelta(hours=1),
                    clock=self.time,
                    host_clock=host_clock,
                    locks=locks,
                    dispatcher=lambda: _serial(events, host_clock, self.run_after_claim),
                    stop=self.stop,
                    jitter=lambda: 0.5,
                    allowance=Allowance(options.get("limit")),
                    undeliverable=lambda: strays(connection, settings),
                )
                result = report.run(self.jobs(MeterWiring(sources=sources, run_id=run_id), asked.scope))
            ended_and_told(connection, settings, run_id, result, self.time.now())
            return result

    def jobs(self, wiring: MeterWiring, scope: Scope = EVERYTHING) -> dict[str, Callable[[], MeterJob]]:
        """Event_name → how to open the meter's job, for all enabled meters."""
        meters = wiring.sources.settings.enabled_meters
        return {meter.event_name: partial(self._job, wiring, key, scope) for key, meter in meters.items()}

    def _job(self, wiring: MeterWiring, key: str, scope: Scope) -> MeterJob:
        totals = stripe_totals(wiring.sources.settings, key)
        return self.wrap_job(wiring.job(key, self.wrap_totals(totals), scope=scope))

    def locks(self) -> MeterLocks:
        return MeterLocks(self.database_url, run_label="test", host_clock=self.time)

    def settle(self, meter: str = "ai_suggestion") -> Settlements:
        """Settle a meter by totals once, as `meterctl settle` does."""
        with psycopg.connect(self.database_url, autocommit=True) as opened, self.locks() as locks:
            connection = self.wrap_connection(opened)
            assert locks.acquire(meter, timeout_s=0, stopping=lambda: False)
            take_over(connection, meter, 0)
            settings = self.settings()
            wiring = MeterWiring(sources=Sources(connection=connection, settings=settings))
            return Settlement(
                ledger=wiring.settlements(meter),
                totals=self.wrap_totals(stripe_totals(settings, meter)),
                clock=self.time,
                grace=timedelta(hours=1),
                may_go_on=lambda: True,
            ).run()

    def pull(self) -> list[Acted]:
        """Read Stripe's lists of events and act on what is new, as `meterctl webhooks pull` does."""
        settings, acted = self.settings(), list[Acted]()
        with psycopg.connect(self.database_url, autocommit=True) as opened:
            connection = self.wrap_connection(opened)
            wiring = EventWiring(
                connection=connection,
                settings=settings,
                account=self.stripe.account_id,
                clock=self.time,
                client=client_of(settings),
            )
            store = event_store(connection, settings)
            pull = Pull(store=store, lists=wiring.stripe, account=self.stripe.account_id, livemode=False)
            for some in lists_of(settings.webhooks.handle):
                pull.run(some, now=self.time.now())
            store.take_up(settings.webhooks.handle, self.time.now() - LISTED_FOR)
            acting = Acting(actions=wiring.actions(), may_go_on=lambda: True, tell=acted.append)
            acting.run(store.ids(EventSelection(statuses=("received",))))
        if acting.unavailable is not None:
            raise acting.unavailable
        return acted

    def source(self, key: str) -> UsageSource:
        """A meter's usage as a report reads it, on this world's own connection."""
        return Sources(connection=self.connection, settings=self.settings()).of(key)  # type: ignore[arg-type] # only the row factory differs

    def rows_source(self, connection: psycopg.Connection[Any] | None = None) -> PostgresRows:
        """The usage rows as a report reads them, on this world's own connection or the one given."""
        settings = self.settings()
        meter = settings.meters["ai_suggestion"]
        assert isinstance(meter, RowsMeter)
        nobody = LedgerOwner(account="", livemode=False)
        return PostgresRows(connection or self.connection, "ai_suggestion", meter, settings.lookups, nobody)  # type: ignore[arg-type] # only the row factory differs

    # The scene

    def customer(self, name: str, *, known: bool = True, **columns: Any) -> str:
        """A user with a subscription of their own, paid by `cus_NAME`."""
        values = {"user_id": name, "stripe_customer_id": f"cus_{name}"} | columns
        self.insert("subscriptions", values)
        if known:
            self.stripe.create_customer(f"cus_{name}")
        return f"cus_{name}"

    def usage(self, user: str, quantity: Any = 1, *, ago: timedelta = timedelta(hours=1), **columns: Any) -> int:
        """One usage row; returns its id."""
        values = {
            "workspace_id": "ws",
            "user_id": user,
            "quantity": quantity,
            "created_at": self.time.now() - ago,
        } | columns
        return int(self.insert("usage_events", values)["id"])

    def insert(self, table: str, values: dict[str, Any]) -> dict[str, Any]:
        names = ", ".join(values)
        places = ", ".join(["%s"] * len(values))
        text = f"INSERT INTO {table} ({names}) VALUES ({places}) RETURNING *"  # noqa: S608 -- a test's own words
        row = self.connection.execute(text, list(values.values())).fetchone()
        assert row is not None
        return dict(row)

    # What came of it

    def rows(self, text: str) -> list[dict[str, Any]]:
        return self.connection.execute(text).fetchall()

    def events(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM meterctl.meter_events ORDER BY id")

    def states(self) -> list[str]:
        return [event["state"] for event in self.events()]

    def stripe_total(self) -> Decimal:
        return sum(self.stripe.totals().values(), Decimal(0))

    def assert_exact(self) -> None:
        """I2 and I3: Stripe's total per customer is the accepted events' sum is the stamped rows' units."""
        self.assert_accepted_is_billed()
        bound = self.rows(
            "SELECT coalesce(sum(u.quantity), 0) AS units, coalesce(sum(e.quantity), 0) AS ledger"
            " FROM meterctl.meter_events e JOIN usage_events u ON u.id::text = e.source_row_id"
            " WHERE e.state = 'accepted'"
        )[0]
        assert bound["units"] == bound["ledger"]

    def assert_accepted_is_billed(self) -> None:
        """I3, of meters that sum: Stripe's total per customer is the accepted events' sum."""
        accepted = {
            (row["event_name"], row["customer"]): row["total"]
            for row in self.rows(
                "SELECT event_name, customer, sum(value) AS total FROM meterctl.meter_events"
                " WHERE state = 'accepted' GROUP BY 1, 2"
            )
        }
        assert {key: total for key, total in self.stripe.totals().items() if total} == {
            key: total for key, total in accepted.items() if total
        }


def stripe_totals(settings: Settings, key: str) -> Totals:
    """Stripe's totals of a meter, read without a pause."""
    client = stripe_client(settings.stripe, connections_max=1, read_timeout_s=1.0)
    return MeterSummaries(client, settings.meters[key].event_name, livemode=False, pace_per_s=None)


def ended_and_told(
    connection: psycopg.Connection, settings: Settings, run_id: int, result: ReportResult, now: datetime
) -> None:
    """Record the run's end and that its problems were printed, as the command does."""
    finish_run(connection, run_id, result.exit_code, {}, now)
    told = {tally.event_name for tally in result.tallies}
    meters = [key for key, meter in settings.meters.items() if meter.event_name in told]
    note_told(connection, run_id, meters=meters, event_names=list(told))


class Everybodys:
    """A lock that lets everybody in."""

    def acquire(self, event_name: str, *, timeout_s: float, stopping: Callable[[], bool]) -> bool:
        return bool(event_name) and timeout_s >= 0 and not stopping()

    def holder(self, event_name: str) -> str:
        return event_name

    def keep(self) -> None: ...


@contextmanager
def _serial(events: MeterEvents, host_clock: HostClock, after_claim: Callable[[], None]) -> Iterator[Dispatcher]:
    class Suspending(SerialDispatcher):
        def submit(self, claims: Sequence[Claim], **readings: float) -> None:
            super().submit(claims, **readings)
            if claims:
                after_claim()

    yield Suspending(events, TokenBucket(None), host_clock)


@contextmanager
def open_world(database_url: str) -> Iterator[World]:
    """Open a world on a migrated database with the shipped tables."""
    time = VirtualTime()
    with (
        LocalStripe(clock=time.now) as stripe,
        psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        stripe.create_meter(event_name="ai_suggestion")
        yield World(database_url=database_url, stripe=stripe, time=time, connection=connection)
