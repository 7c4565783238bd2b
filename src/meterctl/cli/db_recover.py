"""`db recover` and `db adopt-copy`: what to do where the database is not the one, or not as late, as it was."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from meterctl.actions.collect import Collection, row_window
from meterctl.actions.tally import Tally
from meterctl.cli.locking import all_meters_locked
from meterctl.cli.meter_wiring import MeterWiring
from meterctl.cli.wiring import confirmed_for, open_database
from meterctl.clock import Clock, SystemHostClock
from meterctl.core.model import RESEND_LIMIT
from meterctl.core.value import formatted
from meterctl.errors import ConfigurationError, ExitCode, UsageError
from meterctl.ports import RowWindow
from meterctl.postgres.check import require_fit
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection, transaction
from meterctl.postgres.forget import require_no_report
from meterctl.postgres.identity import ledger_identity
from meterctl.postgres.recover import (
    OpenEvents,
    adopt_copy,
    begin_recovery,
    end_recovery,
    event_names,
    open_events,
    require_right_to_adopt,
)
from meterctl.postgres.runs import finish_run, start_run
from meterctl.postgres.sources import Sources
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.render.tables import table
from meterctl.render.values import printable
from meterctl.settings import GaugeMeter, Settings

SCHEMA = "meterctl.db_recover/1"

TOTALS_ONLY = datetime(1970, 1, 1, tzinfo=UTC)
"""In doubt since ever: too old to be sent again, so Stripe's totals decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line, parsed. `resend`: the lost calls are less than 23 hours old, so identifiers still guard."""

    since: datetime
    resend: bool
    yes: bool
    confirm: str | None
    as_json: bool


def recover(settings: Settings, asked: Asked) -> ExitCode:
    """Put in doubt whatever the lost future may have sent: events without an answer, and rows without an event."""
    with open_database(settings) as connection:
        identity = _identity(connection)
        clock = PostgresClock(connection, SystemHostClock())
        _require_sense(asked, clock.now())
        require_fit(connection, settings)
        rows = _uncollected(connection, settings, identity, clock.now())
        _show(open_events(connection), rows, as_json=asked.as_json)
        question = f"Put all of it in doubt, for {_settled_by(asked)} to settle?"
        if not _agreed(identity, question, asked.yes, asked.confirm):
            return ExitCode.OK
        with all_meters_locked(settings, event_names(open_events(connection))):
            _require_no_report(connection)
            count = recover_ledger(connection, settings, clock, since=asked.since, resend=asked.resend)
    _tell("recovered", count, as_json=asked.as_json)
    return ExitCode.OK


def adopt(settings: Settings, *, yes: bool, confirm: str | None, as_json: bool) -> ExitCode:
    """Make a copy's ledger its own: nothing of what is open here is ever sent from here."""
    with open_database(settings) as connection:
        identity = _identity(connection)
        clock = PostgresClock(connection, SystemHostClock())
        require_right_to_adopt(connection)
        require_fit(connection, settings)
        _show(open_events(connection), _uncollected(connection, settings, identity, clock.now()), as_json=as_json)
        question = "This is a copy, and all of it is billed elsewhere: close it here, and make the ledger nobody's?"
        if not _agreed(identity, question, yes, confirm):
            return ExitCode.OK
        with all_meters_locked(settings, event_names(open_events(connection))):
            _require_no_report(connection)
            count = adopt_ledger(connection, settings, clock)
    _tell("closed", count, as_json=as_json)
    return ExitCode.OK


def _require_no_report(connection: Connection) -> None:
    with transaction(connection, read_only=True):
        require_no_report(connection)


def _identity(connection: Connection) -> Mapping[str, Any]:
    found = ledger_identity(connection)
    if found is None:
        raise ConfigurationError("this ledger is nobody's yet: there is nothing to do", hint="run a report")
    return found


def _require_sense(asked: Asked, now: datetime) -> None:
    if asked.since > now:
        raise UsageError("--since lies ahead", hint="name the instant that the database was set back to")
    if asked.resend and now - asked.since >= RESEND_LIMIT - timedelta(minutes=30):
        raise UsageError(
            "--resend is for calls lost less than 22 hours ago; Stripe may have forgotten older identifiers",
            hint="leave out --resend: Stripe's totals decide",
        )


def _settled_by(asked: Asked) -> str:
    return "Stripe, asked again under the same identifiers," if asked.resend else "Stripe's totals"


def _agreed(identity: Mapping[str, Any], question: str, yes: bool, confirm: str | None) -> bool:  # noqa: FBT001 -- as it was given
    agreed = confirmed_for(identity["account"], question, livemode=identity["livemode"], yes=yes, confirm=confirm)
    if not agreed:
        print("nothing was done", file=sys.stderr)
    return agreed


def recover_ledger(connection: Connection, settings: Settings, clock: Clock, *, since: datetime, resend: bool) -> int:
    """Collect all rows, then doubt all events; return how many. The caller holds all locks.

    From its beginning to its end no report sends anything; what dies in between is run again.
    """
    begin_recovery(connection, since)
    run_id = _collect_all(connection, settings, clock, "db recover")
    doubt_since = since if resend else TOTALS_ONLY
    count = end_recovery(connection, doubt_since=doubt_since, now=clock.now())
    finish_run(connection, run_id, ExitCode.OK, {"in_doubt": count}, clock.now())
    return count


def adopt_ledger(connection: Connection, settings: Settings, clock: Clock) -> int:
    """Collect all usage, for the original bills it, then close all events; return how many. As above."""
    run_id = _collect_all(connection, settings, clock, "db adopt-copy", open_too=True)
    count = adopt_copy(connection, "a copy: the original bills it")
    finish_run(connection, run_id, ExitCode.OK, {"closed": count}, clock.now())
    return count


def _collect_all(
    connection: Connection, settings: Settings, clock: Clock, command: str, *, open_too: bool = False
) -> int:
    """Give an event to all usage that may have been billed; return the id of the run that this began.

    `open_too`: also to that of hours which have not ended.
    """
    owner = _owner(_identity(connection))
    sources = Sources(connection=connection, settings=settings, owner=owner, open_too=open_too)
    wiring = MeterWiring(sources=sources, run_id=start_run(connection, command, owner, clock.now()))
    for key in _with_usage_of_their_own(settings):
        _collect(wiring, key, clock)
    return wiring.run_id


def _window(now: datetime) -> RowWindow:
    """Return all rows that a run may have looked at: also those by now in the hour before they expire."""
    window = row_window(now, recent=None)
    return replace(window, fresh_from=window.expired_before)


def _with_usage_of_their_own(settings: Settings) -> list[str]:
    """Return the meters whose usage the database keeps; a level is what it is now."""
    return [key for key, meter in settings.enabled_meters.items() if not isinstance(meter, GaugeMeter)]


def _collect(wiring: MeterWiring, key: str, clock: Clock) -> None:
    source = wiring.sources.of(key)
    Collection(
        source=source,
        ledger=wiring.ledger(key, source),
        clock=clock,
        window=_window(clock.now()),
        batch_size=500,
        tally=Tally(event_name=wiring.sources.settings.meters[key].event_name),
        may_go_on=lambda: True,
    ).run()


def _uncollected(
    connection: Connection, settings: Settings, identity: Mapping[str, Any], now: datetime
) -> dict[str, int]:
    sources = Sources(connection=connection, settings=settings, owner=_owner(identity))
    window = _window(now)
    return {
        settings.meters[key].event_name: backlog.row_count
        for key in _with_usage_of_their_own(settings)
        if (backlog := sources.of(key).backlog(window)) is not None
    }


def _owner(identity: Mapping[str, Any]) -> LedgerOwner:
    return LedgerOwner(account=identity["account"], livemode=identity["livemode"])


def _show(found: list[OpenEvents], rows: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        return
    lines = [
        [printable(one.event_name), one.state, str(one.event_count), formatted(one.units), str(one.customer_count)]
        for one in found
    ]
    lines += [[printable(name), "rows without an event", str(count), "-", "-"] for name, count in rows.items()]
    heads = ["meter", "state", "events", "units", "customers"]
    print(table(heads, lines, console=sys.stdout.isatty()), flush=True)


def _tell(what: str, count: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"schema": SCHEMA, "exit_code": 0, what: count}))
    print(f"{what} {count} events", file=sys.stderr)
