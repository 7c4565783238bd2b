"""`ledger doubt`: turn a shortfall into doubt. Imported by the command, for it imports psycopg."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterctl.cli.report import meters_called
from meterctl.cli.wiring import confirmed, open_database
from meterctl.core.settlement import Window
from meterctl.core.value import formatted
from meterctl.errors import ExitCode, UsageError
from meterctl.postgres.connect import Connection
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.settlements import doubtable, put_in_doubt
from meterctl.postgres.sources import Sources
from meterctl.render.ledger import SCHEMA
from meterctl.render.values import printable
from meterctl.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line, parsed."""

    meter: str
    window: Window
    reason: str
    yes: bool
    dry_run: bool
    as_json: bool


def doubt_events(settings: Settings, asked: Asked) -> ExitCode:
    """Put in doubt what is accepted in one customer and minute, once it was shown and agreed to."""
    if asked.window.minute.second or asked.window.minute.microsecond:
        raise UsageError("--minute is no whole minute", hint="write it like 2026-12-01T02:17:00Z")
    (key,) = meters_called(settings, (asked.meter,))
    with open_database(settings) as connection:
        events = doubtable(connection, settings.meters[key].event_name, asked.window)
        units = sum((event["quantity"] for event in events), Decimal(0))
        _say(f"{len(events)} accepted events, {formatted(units)} units, of {printable(asked.window.customer)}")
        agreed = bool(events) and not asked.dry_run and confirmed("put them in doubt?", yes=asked.yes)
        done = _doubted(connection, settings, key, [event["id"] for event in events], asked.reason) if agreed else []
    if asked.as_json:
        print(json.dumps({"schema": SCHEMA, "command": "doubt", "dry_run": asked.dry_run, "doubt": done}))
    elif done:
        print(f"{len(done)} events are in doubt; Stripe's totals settle them (`meterctl settle`, or the next reports)")
    else:
        print("nothing was changed")
    return ExitCode.OK


def _doubted(connection: Connection, settings: Settings, key: str, ids: Sequence[int], reason: str) -> list[int]:
    source = Sources(connection=connection, settings=settings).of(key)

    def unstamp(event_ids: Sequence[int]) -> int:
        return source.unstamp(event_ids) if isinstance(source, PostgresRows) else 0

    return put_in_doubt(connection, ids, reason, unstamp_rows=unstamp)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
