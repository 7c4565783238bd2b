"""A world configured by a file: several meters, reported as the command does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from meterctl.actions.meter_report import MeterJob, ReportOptions
from meterctl.actions.report import Report, ReportResult
from meterctl.cli.meter_wiring import MeterWiring
from meterctl.cli.report_run import strays
from meterctl.core.allowance import Allowance
from meterctl.core.pacing import TokenBucket
from meterctl.core.scope import Scope
from meterctl.dispatch import SerialDispatcher
from meterctl.ports import Dispatcher
from meterctl.postgres.identity import claim_ledger
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.runs import start_run
from meterctl.postgres.sources import Sources
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import Settings, load_settings
from meterctl.stripe_api.client import stripe_client
from meterctl.stripe_api.single import SingleEvents
from world import World, ended_and_told, stripe_totals

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

LOOKUP = """
[lookups.individual]
table = "subscriptions"
subject = "user_id"
customer = "stripe_customer_id"
started_at = "started_at"
ended_at = "ended_at"
"""


def meter(key: str, **changes: str) -> str:
    """A `rows` meter in TOML."""
    fields = {
        "source": "rows",
        "formula": "sum",
        "table": "usage_events",
        "id": "id",
        "value": "quantity",
        "occurred_at": "created_at",
        "reported_at": "stripe_reported_at",
    } | changes
    lines = "".join(f'{name} = "{value}"\n' for name, value in fields.items())
    return f'\n[meters.{key}]\n{lines}payers = [{{ lookup = "individual", column = "user_id" }}]\n'


def configured(world: World, tmp_path: Path, *meters: str) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(LOOKUP + "".join(meters))
    environ = {
        "DATABASE_URL": world.database_url,
        "STRIPE_SECRET_KEY": world.stripe.api_key,
        "METERCTL_STRIPE_API_BASE": world.stripe.url,
    }
    return load_settings(config_file=path, environ=environ, flags={})


Opened = Callable[[MeterJob], MeterJob]


def run(
    world: World,
    settings: Settings | None = None,
    *,
    opened: Opened = lambda job: job,
    jitter: Callable[[], float] = lambda: 0.5,
    **options: Any,
) -> ReportResult:
    """Report all enabled meters once, as the command does, with the world's clock; `opened` may wrap each job."""
    settings = settings or world.settings()
    owner = LedgerOwner(account=world.stripe.account_id, livemode=False)
    events = SingleEvents(stripe_client(settings.stripe, connections_max=1, read_timeout_s=1.0))
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        claim_ledger(connection, owner, world.time.now())
        run_id = start_run(connection, "report", owner, world.time.now())
        with MeterLocks(world.database_url, run_label="test", host_clock=world.time) as locks:
            report = Report(
                options=ReportOptions(**options),
                livemode=False,
                grace=HOUR,
                clock=world.time,
                host_clock=world.time,
                locks=locks,
                dispatcher=lambda: serial(events, world),
                stop=world.stop,
                jitter=jitter,
                allowance=Allowance(options.get("limit")),
                undeliverable=lambda: strays(connection, settings),
            )
            result = report.run(
                {
                    one.event_name: partial(
                        lambda key: opened(job(settings, connection, owner, run_id, key, options)), key
                    )
                    for key, one in settings.enabled_meters.items()
                }
            )
        ended_and_told(connection, settings, run_id, result, world.time.now())
        return result


@contextmanager
def serial(events: SingleEvents, world: World) -> Iterator[Dispatcher]:
    yield SerialDispatcher(events, TokenBucket(None), world.time)


def job(
    settings: Settings,
    connection: psycopg.Connection,
    owner: LedgerOwner,
    run_id: int,
    key: str,
    options: dict[str, Any],
) -> MeterJob:
    sources = Sources(connection=connection, settings=settings, owner=owner)
    wiring = MeterWiring(sources=sources, run_id=run_id)
    return wiring.job(key, stripe_totals(settings, key), scope=Scope(row_ids=options.get("row_ids", ())))


def stamped_units(world: World) -> Any:
    text = "SELECT coalesce(sum(quantity), 0) AS n FROM usage_events WHERE stripe_reported_at IS NOT NULL"
    return world.rows(text)[0]["n"]
