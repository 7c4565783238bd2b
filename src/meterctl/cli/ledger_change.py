"""Changing events by hand: find, show, ask, do, tell. Imported by the commands that need it, for it imports psycopg."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from meterctl.cli.ledger import refuse_unknown
from meterctl.cli.wiring import confirmed, open_database
from meterctl.clock import SystemHostClock
from meterctl.core.event_group import EventGroup
from meterctl.core.state import IDENTIFIER_TAKEN
from meterctl.errors import ConfigurationError, InputError, MeterctlError
from meterctl.postgres.clock import PostgresClock
from meterctl.postgres.connect import Connection
from meterctl.postgres.ledger_admin import BATCH_SIZE_MAX, Rereading, Retried, judge, retry, waive
from meterctl.postgres.ledger_events import Selection, select_groups, unknown_ids
from meterctl.postgres.sources import Sources
from meterctl.render.ledger import Change, show_change, show_plan
from meterctl.settings import Settings

TAKES = {"retry": ("rejected",), "waive": ("rejected", "expired")}
"""Command → the states it may leave."""

WHY_NOT = {
    "pending": "it is due, the next report sends it",
    "sending": "a report is sending it",
    "in_doubt": "whether Stripe has it is open; a report sends it again while the doubt is younger than 23 h",
    "accepted": "Stripe has it, so it is billed",
    "expired": "it is older than the 35 days that Stripe takes; `ledger waive` closes it",
    "replaced": "it was issued again, as `ledger show` says; look at its successor",
    "waived": "it was closed by a person",
}
"""State → why an event in it cannot be retried or waived."""

_Act = Callable[[EventGroup, Sequence[int]], Retried]
"""Given a group and at most 500 of its ids, change those that still are as they were, and say what came of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The command line: `verb` is retry or waive; `selection` holds ids, filters, or both."""

    verb: str
    selection: Selection
    reason: str
    yes: bool
    dry_run: bool
    as_json: bool

    @property
    def in_bulk(self) -> bool:
        """Whether the events were not named one by one."""
        return not self.selection.ids


def change_events(settings: Settings, asked: Asked) -> None:
    """Carry out `ledger retry` or `ledger waive`. Nothing is changed before it was shown and agreed to."""
    with open_database(settings) as connection:
        groups, left_out = _found(connection, asked)
        act = _act(connection, settings, asked, groups)
        show_plan(asked.verb, groups)
        change = Change(
            verb=asked.verb, reason=asked.reason, dry_run=asked.dry_run, groups=groups, left_out=left_out, refused={}
        )
        show_change(_carried_out(change, act, asked), as_json=asked.as_json)


def _carried_out(change: Change, act: _Act, asked: Asked) -> Change:
    count = sum(len(group.ids) for group in change.groups)
    if count and not asked.dry_run and not confirmed(f"{asked.verb} these {count} events?", yes=asked.yes):
        return replace(change, asked_no=True)
    done = _in_batches(change.groups, act)
    return replace(change, done_ids=done.done_ids, refused=done.refused)


def _found(connection: Connection, asked: Asked) -> tuple[list[EventGroup], int]:
    """Return the events to change, and how many were left out because they may be billed a second time."""
    if asked.in_bulk:
        selection = replace(asked.selection, states=TAKES[asked.verb])
        if asked.verb == "retry":
            return _without_taken(connection, selection)
        return select_groups(connection, selection), 0
    refuse_unknown(unknown_ids(connection, asked.selection.ids))
    groups = select_groups(connection, asked.selection)
    for group in groups:
        _require_state(group, asked.verb)
    if asked.verb == "retry" and any(group.code == IDENTIFIER_TAKEN for group in groups):
        _say(f"{IDENTIFIER_TAKEN}: if it was this usage that took the identifier, a new one bills it a second time")
    return groups, 0


def _without_taken(connection: Connection, selection: Selection) -> tuple[list[EventGroup], int]:
    groups = select_groups(connection, selection)
    left_out = sum(len(group.ids) for group in groups if group.code == IDENTIFIER_TAKEN)
    if not left_out:
        return groups, 0
    _say(
        f"{left_out} {IDENTIFIER_TAKEN} left out: under a new identifier they may be billed a second time; "
        "look at each, then retry it by its id"
    )
    return select_groups(connection, replace(selection, without_code=IDENTIFIER_TAKEN)), left_out


def _require_state(group: EventGroup, verb: str) -> None:
    if group.state not in TAKES[verb]:
        raise InputError(
            f"event {group.ids[0]} is {group.state}: {WHY_NOT.get(group.state, 'that is final')}",
            hint=f"`ledger {verb}` takes {' and '.join(TAKES[verb])} events only; nothing was changed",
        )


def _act(connection: Connection, settings: Settings, asked: Asked, groups: Sequence[EventGroup]) -> _Act:
    if asked.verb == "waive":
        return _waiving(connection, asked)
    return _retrying(connection, _sources(connection, settings, groups), settings, asked)


def _waiving(connection: Connection, asked: Asked) -> _Act:
    def act(group: EventGroup, ids: Sequence[int]) -> Retried:
        done = ids if asked.dry_run else waive(connection, ids, asked.reason, code=group.code)
        gone = dict.fromkeys(sorted(set(ids) - set(done)), "it changed meanwhile")
        return Retried(done_ids=tuple(done), refused=gone)

    return act


def _retrying(connection: Connection, sources: Mapping[str, Rereading], settings: Settings, asked: Asked) -> _Act:
    clock = PostgresClock(connection, SystemHostClock())

    def act(group: EventGroup, ids: Sequence[int]) -> Retried:
        source, now = sources[group.meter], clock.now()
        if asked.dry_run:
            return judge(connection, ids, source, now, code=group.code)
        event_name = settings.meters[group.meter].event_name
        return retry(connection, ids, source, event_name, asked.reason, now, code=group.code)

    return act


def _sources(connection: Connection, settings: Settings, groups: Sequence[EventGroup]) -> dict[str, Rereading]:
    """Return the sources of the events' meters; looked up before anything is shown, so that all of it can be done.

    Raises ConfigurationError for a meter that is not configured any more, or that no report would deliver.
    """
    found: dict[str, Rereading] = {}
    sources = Sources(connection=connection, settings=settings)  # retried events keep the account and mode of the first
    for key in sorted({group.meter for group in groups}):
        meter = settings.meters.get(key)
        if meter is None or not meter.enabled:
            why = "is disabled" if meter is not None else "is not configured any more"
            raise ConfigurationError(
                f"meter {key} {why}: its usage cannot be read anew, and no report would deliver its events",
                hint=f"restore or enable [meters.{key}], or `meterctl ledger waive` its events",
            )
        found[key] = sources.of(key)
    return found


def _in_batches(groups: Sequence[EventGroup], act: _Act) -> Retried:
    """Change all groups, a transaction a batch; whatever stops it, say what is done already."""
    done: list[int] = []
    refused: dict[int, str] = {}
    try:
        for group in groups:
            for start in range(0, len(group.ids), BATCH_SIZE_MAX):
                result = act(group, group.ids[start : start + BATCH_SIZE_MAX])
                done += result.done_ids
                refused |= result.refused
    except MeterctlError:
        if done:
            _say(f"{len(done)} events were changed before this happened; running again takes the rest")
        raise
    return Retried(done_ids=tuple(done), refused=refused)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
