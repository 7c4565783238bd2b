"""Collect: usage rows become ledger events, page by page, each page one transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from meterctl.actions.tally import Tally
from meterctl.clock import Clock
from meterctl.core.model import PAST_LIMIT
from meterctl.core.scope import UsageSpan
from meterctl.logs import get_logger
from meterctl.ports import MeterLedger, Page, PageKey, RowWindow, UsageSource

LOOK_BACK = PAST_LIMIT - timedelta(hours=1)
"""Rows younger than this are collected: the hour is for the time a run may take to send them."""

EXPIRED_LOOK_BACK = 2 * PAST_LIMIT
"""Rows between 35 days and this age enter the ledger once, as expired; older ones are not looked at."""


def row_window(
    now: datetime, *, recent: timedelta | None, row_ids: tuple[str, ...] = (), span: UsageSpan | None = None
) -> RowWindow:
    """Return which rows a run at `now` looks at.

    `recent` shortens the look-back for frequent runs; a past `span` takes its place.
    """
    look_back = recent if recent is not None else EXPIRED_LOOK_BACK
    return RowWindow(
        since=span.since if span else now - look_back,
        until=span.last if span else now,
        fresh_from=now - LOOK_BACK,
        expired_before=now - PAST_LIMIT,
        row_ids=row_ids,
        span=span,
        as_of=now,
    )


SKIPPED = {"no_subscription": "no Stripe customer"}
"""Code of a skip that names its subjects → why."""

log = get_logger()


@dataclass(kw_only=True, slots=True)
class Collection:
    """One meter's collecting. `room` is how many more events the run may take in (None: any number)."""

    source: UsageSource
    ledger: MeterLedger
    clock: Clock
    window: RowWindow
    batch_size: int
    tally: Tally
    may_go_on: Callable[[], bool]
    room: int | None = None

    def run(self) -> None:
        """Collect until the rows, the room or the time is used up; what is left is counted as remaining."""
        key: PageKey | None = None
        while self._has_room() and self.may_go_on():
            now = self.clock.now()
            page = self.source.collect(self.window, key, batch_size=self.batch_size, now=now, room=self.room)
            self._note(page)
            if page.next_key is None:
                return
            key = page.next_key
        self.tally.remaining += self.source.count_uncollected(self.window, key)

    def _has_room(self) -> bool:
        return self.room is None or self.room > 0

    def _note(self, page: Page) -> None:
        if page.unstamped_row_ids:
            self.ledger.stamp(page.unstamped_row_ids, now=self.clock.now())
        for kind in page.kinds:
            self.tally.collected(kind)
            if kind.code in SKIPPED:
                log.info(
                    "skipped", event_name=self.tally.event_name, reason=SKIPPED[kind.code], subjects=kind.sample_ids
                )
            if self.room is not None and kind.outcome == "pending":
                self.room -= kind.event_count
