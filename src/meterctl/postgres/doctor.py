"""What the doctor asks of a database beyond `db check`: nothing is changed."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg
from psycopg import sql

from meterctl.clock import HostClock
from meterctl.core.diagnosis import Finding, failed, passed, warned
from meterctl.core.model import PAST_LIMIT, RESEND_LIMIT
from meterctl.errors import MeterctlError
from meterctl.ports import ClaimRequest
from meterctl.postgres.catalog import fetch, find_tables
from meterctl.postgres.check import misfits
from meterctl.postgres.connect import transaction
from meterctl.postgres.identity import ledger_identity, mode_name, require_owner
from meterctl.postgres.indexes import relations_of
from meterctl.postgres.ledger import PostgresMeterLedger
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.payers_sql import paying
from meterctl.postgres.plans import PAGE, Plan
from meterctl.postgres.queries import query
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.postgres.wanted import rows_meters
from meterctl.settings import LookupSettings, MeterSettings, Settings


def role(connection: psycopg.Connection) -> Iterator[Finding]:
    """Find out who works here. What the role lacks is told with the tables."""
    with transaction(connection, read_only=True):
        found = fetch(connection, query("doctor", "role"))[0]
    if found["superuser"]:
        message = f"role {found['role']} is a superuser, and may do all that the job must not"
        yield warned(message, "give the job a role of its own (docs/operating.md, Database)")
    else:
        yield passed(f"role {found['role']}")


def fitting_meters(connection: psycopg.Connection, settings: Settings) -> dict[str, MeterSettings]:
    """Return the enabled meters whose tables fit the configuration."""
    meters = settings.enabled_meters
    return {key: meter for key, meter in meters.items() if not misfits(connection, settings, [key])}


def triggers(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """Find the application's triggers that stamping a row fires."""
    for meter in rows_meters(settings).values():
        with transaction(connection, read_only=True):
            table = find_tables(connection, [meter.table_parts]).get(meter.table_parts)
            if table is None:
                continue
            oids = [relation.oid for relation in relations_of(connection, table.oid)]
            found = fetch(
                connection, query("doctor", "update_triggers"), {"tables": oids, "reported_at": meter.reported_at}
            )
        for one in found:
            message = f"stamping fires trigger {one['name']} of {one['table']}, for each {one['level']}"
            remedy = f"see that {one['function']} suits it, or let it fire UPDATE OF other columns"
            yield warned(message, remedy)
        if not found:
            yield passed(f"stamping {meter.table} fires no trigger")


@contextmanager
def without_seqscan(connection: psycopg.Connection) -> Iterator[None]:
    """Within the block, in one transaction, have tables read as a whole only where no index can serve."""
    with transaction(connection, read_only=True):
        connection.execute(query("doctor", "without_seqscan"))
        yield


def claim_plan(connection: psycopg.Connection, key: str, meter: MeterSettings, now: datetime) -> Plan:
    """Return how PostgreSQL would claim a meter's events, within the caller's transaction."""
    ledger = PostgresMeterLedger(
        connection,
        meter=key,
        event_name=meter.event_name,
        run_id=0,
        stamp_rows=lambda _ids, _now: 0,
        keeps_last=meter.formula == "last",
    )
    request = ClaimRequest(
        fresh_max=PAGE,
        customers=(),
        scan_max=PAGE,
        after_customer="",
        retry_ids=(),
        now=now,
        doubt_since=now,
        doubt_horizon=now - RESEND_LIMIT,
        expired_before=now - PAST_LIMIT,
    )
    return ledger.explain_claim(request)


def lock(conninfo: str, host_clock: HostClock) -> Iterator[Finding]:
    """Find out whether a lock that one connection holds keeps another out, behind PgBouncer too."""
    name = f"doctor {uuid.uuid4()}"
    try:
        kept_out = _keeps_out(conninfo, host_clock, name)
    except MeterctlError as error:
        remedy = "a run needs two connections at once; PgBouncer's pool_mode must be transaction or session"
        yield failed(f"the lock cannot be tried: {error.message}", remedy, error.exit_code)
        return
    if kept_out:
        yield passed("the lock of one connection keeps another one out, and frees itself")
    else:
        remedy = "connect to one primary, through a pool in transaction or session mode"
        yield failed("two connections hold the same lock: they lead to different servers", remedy)


def _keeps_out(conninfo: str, host_clock: HostClock, name: str) -> bool:
    def taken(locks: MeterLocks) -> bool:
        return locks.acquire(name, timeout_s=0, stopping=lambda: False)

    with MeterLocks(conninfo, run_label="doctor", host_clock=host_clock) as others:
        with MeterLocks(conninfo, run_label="doctor", host_clock=host_clock) as ours:
            held = taken(ours) and not taken(others)
        return held and others.acquire(name, timeout_s=FREED_WITHIN_S, stopping=lambda: False)


FREED_WITHIN_S = 5.0
"""How long the server, or a pool before it, may take to notice that a connection is closed."""


def identity(connection: psycopg.Connection, account: str | None, *, livemode: bool) -> Iterator[Finding]:
    """Find out whether the ledger is this account's and mode's, and of this database. Raises ConfigurationError if not.

    Where the account is not known, the ledger's own is taken for it.
    """
    found = ledger_identity(connection)
    if found is None:
        whose = f"{account or 'the account'} in {mode_name(livemode=livemode)} mode"
        yield passed(f"the ledger is nobody's yet: the first report makes it that of {whose}")
        return
    require_owner(connection, LedgerOwner(account=account or found["account"], livemode=livemode))
    mode = mode_name(livemode=found["livemode"])
    yield passed(f"the ledger is that of {found['account']} in {mode} mode, in the database that it was written in")


def renewals(
    connection: psycopg.Connection, lookups: Sequence[LookupSettings], now: datetime, span: timedelta
) -> dict[int | None, int]:
    """Return how many periods end within the span, by the minute of the UTC day; None: of unknown end."""
    with transaction(connection, read_only=True):
        text = sql.SQL(query("doctor", "renewals")).format(payers=paying(connection, lookups))
        rows = connection.execute(text, {"now": now, "until": now + span}).fetchall()
    return {None if minute is None else int(minute): count for minute, count in rows}
