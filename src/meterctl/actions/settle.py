"""Settle: old doubts are decided by Stripe's totals, minute by minute. What totals prove is in `core/settlement.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from meterctl.clock import Clock
from meterctl.core.model import clocks_apart
from meterctl.core.settlement import Books, Window, decide
from meterctl.errors import RefusedError, UnavailableError
from meterctl.logs import get_logger
from meterctl.ports import Settled, SettledEvent, SettlementLedger, Totals

READS_MAX = 300
"""Reads one meter may cost a run. Stripe allows few: at least 10,000 a month (rate-limit page)."""

FAILED_IN_A_ROW_MAX = 3
"""So many reads in a row that fail are Stripe's fault, not that of one customer."""

log = get_logger()


@dataclass(kw_only=True, slots=True)
class Settlements:
    """What settling came to. `waiting_count`: minutes read, or too busy to be read, that need another read later."""

    read_count: int = 0
    waiting_count: int = 0
    present: list[SettledEvent] = field(default_factory=list)
    absent: list[SettledEvent] = field(default_factory=list)
    held: dict[str, list[int]] = field(default_factory=dict)

    def note(self, settled: Settled) -> None:
        """Add what one minute came to."""
        self.present += settled.present
        self.absent += settled.absent
        if settled.held_reason is not None:
            self.held.setdefault(settled.held_reason, []).extend(settled.held_ids)


@dataclass(kw_only=True, slots=True)
class Settlement:
    """Settling one meter; the caller holds its lock. `grace` as for delivery: what was sent later is late."""

    ledger: SettlementLedger
    totals: Totals
    clock: Clock
    grace: timedelta
    may_go_on: Callable[[], bool]
    reads_max: int = READS_MAX
    result: Settlements = field(default_factory=Settlements)
    _failed: UnavailableError | None = None
    _failed_in_a_row: int = 0

    def run(self) -> Settlements:
        """Read each open minute once and decide those whose reads suffice.

        A read that fails leaves its minute open, and the others are read. Raises the MeterctlError of the last one that
        failed, at the end or after three in a row; what was decided before stands.
        """
        for window in self.ledger.windows(self.clock.now()):
            if not self.may_go_on() or self.result.read_count >= self.reads_max:
                self.result.waiting_count += 1
                continue
            self._try(window)
        if self._failed is not None:
            raise self._failed
        return self.result

    def _try(self, window: Window) -> None:
        try:
            settled = self._settled(window)
        except UnavailableError as error:
            self._failed = error
            self.result.waiting_count += 1
            self._failed_in_a_row = 0 if isinstance(error, RefusedError) else self._failed_in_a_row + 1
            if self._failed_in_a_row >= FAILED_IN_A_ROW_MAX:
                raise
            return
        self._failed_in_a_row = 0
        if settled is None:
            self.result.waiting_count += 1
        else:
            self.result.note(settled)

    def _settled(self, window: Window) -> Settled | None:
        books, read_at = self.ledger.books(window), self.clock.now()
        if not books.doubts or not books.admits_read(read_at):
            return None
        self.result.read_count += 1
        reading = self.totals.total(window.customer, window.minute, window.end)
        if reading.stripe_date is not None and (apart := clocks_apart(reading.stripe_date, self.clock.now())):
            raise UnavailableError(apart)
        series = self.ledger.note(window, reading.total, books, read_at=read_at)
        if not series.is_long_enough:
            return None
        verdict = decide(reading.total, books, window)
        settled = self.ledger.conclude(window, series, verdict, books, now=self.clock.now(), grace=self.grace)
        if settled is not None:
            _log(window, reading.total, books, settled)
        return settled


def _log(window: Window, total: object, books: Books, settled: Settled) -> None:
    log.info(
        "settled",
        customer=window.customer,
        minute=window.minute.isoformat(),
        stripe_total=str(total),
        accepted_total=str(books.accepted),
        present=[event.id for event in settled.present],
        absent=[event.id for event in settled.absent],
        held=settled.held_reason,
    )
