"""A person's word on held doubts. Imported by the command, for it imports psycopg."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from meterctl.cli.ledger import refuse_unknown
from meterctl.cli.wiring import confirmed, open_database
from meterctl.clock import SystemHostClock
from meterctl.core.model import RESEND_LIMIT
from meterctl.errors import ExitCode, InputError
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.ledger_events import Event, Selection, select, unknown_ids
from meterctl.postgres.settlements import assume
from meterctl.render.settle import show_assumed, show_assumption
from meterctl.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """The command line of `settle --assume-…`. `present`: Stripe has the events."""

    ids: tuple[int, ...]
    present: bool
    reason: str
    dry_run: bool
    yes: bool
    as_json: bool


def settle_by_word(settings: Settings, word: Word) -> ExitCode:
    """Accept the events, or make them due again. Nothing is changed before it was shown and agreed to."""
    with open_database(settings) as connection:
        clock = PostgresClock(connection, SystemHostClock())
        refuse_unknown(unknown_ids(connection, word.ids))
        events = select(connection, Selection(ids=word.ids), limit=None)
        _require_old_doubts(events, clock)
        show_assumption(events, present=word.present)
        question = f"take these {len(events)} events as {'present' if word.present else 'absent'}?"
        if word.dry_run or not confirmed(question, yes=word.yes):
            print("nothing was changed", file=sys.stderr)
            return ExitCode.OK
        grace = timedelta(hours=settings.stripe.invoice_grace_h)
        done = assume(connection, word.ids, present=word.present, reason=word.reason, now=clock.now(), grace=grace)
    show_assumed(done, word.ids, present=word.present, as_json=word.as_json)
    return ExitCode.OK


def _require_old_doubts(events: Sequence[Event], clock: PostgresClock) -> None:
    """Raise InputError for an event that is not a person's to decide."""
    horizon = clock.now() - RESEND_LIMIT
    for event in events:
        if event["state"] != "in_doubt":
            raise InputError(
                f"event {event['id']} is {event['state']}: only events in doubt can be decided",
                hint="`meterctl settle` lists what is held; nothing was changed",
            )
        if event["held_reason"] is None and event["doubt_since"] > horizon:
            raise InputError(
                f"event {event['id']} is in doubt for less than 23 h: a report settles it by sending it again",
                hint="run `meterctl report`; nothing was changed",
            )
