"""One meter's part of a report: put the ledger in order, settle, collect, deliver, say what came of it."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from meterctl.actions.answers import Answers, Stopped
from meterctl.actions.collect import Collection, row_window
from meterctl.actions.deliver import Delivery, DeliveryLimits
from meterctl.actions.settle import Settlement
from meterctl.actions.tally import Tally
from meterctl.clock import Clock, HostClock
from meterctl.core.allowance import Allowance
from meterctl.core.model import PAST_LIMIT
from meterctl.core.pacing import SILENCE_AGAIN_MAX_S, SILENCE_MAX_S, OutageWatch
from meterctl.core.scope import Scope, UsageSpan
from meterctl.errors import ConfigurationError, ExitCode, MeterctlError
from meterctl.logs import get_logger
from meterctl.ports import (
    Dispatcher,
    Lock,
    MeterLedger,
    RowWindow,
    SettlementLedger,
    StopRequest,
    Totals,
    UsageSource,
)

log = get_logger()

PREPARING_SHARE = 0.5
"""Part of the time left that a meter's settling or collecting may take: what is due must also be delivered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """What was asked for. `limit` None: no limit; `recent` None: the full look-back; `span` None: up to now."""

    batch_size: int = 500
    limit: int | None = None
    max_duration: timedelta = timedelta(hours=3)
    lock_timeout_s: float = 0.0
    recent: timedelta | None = None
    row_ids: tuple[str, ...] = ()
    span: UsageSpan | None = None

    @property
    def scope(self) -> Scope:
        """What the run is confined to."""
        return Scope(row_ids=self.row_ids, span=self.span)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterJob:
    """One meter's part of a run: its adapters, ready to work. Without `settlements` old doubts are left alone."""

    event_name: str
    source: UsageSource
    ledger: MeterLedger
    settlements: SettlementLedger | None
    totals: Totals
    adopt_identifiers_until: datetime | None = None
    tidy: Callable[[datetime], object] = lambda _: None


class Locks(Lock, Protocol):
    """The run's locks, one per meter."""

    def acquire(self, event_name: str, *, timeout_s: float, stopping: Callable[[], bool]) -> bool:
        """Try to take the meter's lock, for at most `timeout_s` seconds."""
        ...

    def holder(self, event_name: str) -> str:
        """Return who holds it."""
        ...


@dataclass(kw_only=True, slots=True)
class RunParts:
    """What all meters of a run share. Ports come in ready; `dispatcher` opens one for each meter."""

    options: ReportOptions
    livemode: bool
    grace: timedelta
    clock: Clock
    host_clock: HostClock
    locks: Locks
    dispatcher: Callable[[], AbstractContextManager[Dispatcher]]
    stop: StopRequest
    jitter: Callable[[], float] = random.random
    progress: Callable[[Tally], None] = lambda _: None
    allowance: Allowance = field(default_factory=lambda: Allowance(None))
    deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline_s = self.host_clock.elapsed_s() + self.options.max_duration.total_seconds()


@dataclass(kw_only=True, slots=True)
class MeterReport:
    """One meter's report; the caller holds its lock. `suspected`: the meter before ended in what may be an outage.

    `rows_not_found`: of the rows asked for, those that this meter has not to report; None where none was asked for.
    """

    parts: RunParts
    job: MeterJob
    suspected: bool
    tally: Tally = field(init=False)
    codes: list[ExitCode] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: Stopped | None = None
    rows_not_found: set[str] | None = None

    def __post_init__(self) -> None:
        self.tally = Tally(event_name=self.job.event_name)

    def run(self) -> None:
        """Do it all, as far as time and Stripe allow."""
        self._put_in_order()
        self._settle()
        self._collect()
        self._deliver()
        self.job.ledger.supersede()
        self._count_open()
        self.job.tidy(self.parts.clock.now())
        self.codes += _codes(self.tally, limit_reached=self.parts.allowance.left == 0)

    def _put_in_order(self) -> None:
        for kind in self.job.ledger.untold():
            self.tally.untold(kind)
        taken_over = self.job.ledger.take_over()
        if taken_over:
            log.info("taken_over", event_name=self.job.event_name, events=taken_over)
        self.job.ledger.supersede()
        expired = self.job.ledger.expire(expired_before=self.parts.clock.now() - PAST_LIMIT)
        if expired:
            self.tally.expired += len(expired)
            self.tally.problem("expired", expired, count=len(expired))

    def _settle(self) -> None:
        """Decide old doubts. Where Stripe's totals cannot be read, they stay, and what is due is delivered."""
        if self.job.settlements is None:
            return
        until_s = self._share_ends_s()
        settlement = Settlement(
            ledger=self.job.settlements,
            totals=self.job.totals,
            clock=self.parts.clock,
            grace=self.parts.grace,
            may_go_on=lambda: self._may_go_on(until_s),
        )
        try:
            settlement.run()
        except MeterctlError as error:
            self.codes.append(error.exit_code)
            self.notes.append(f"{self.job.event_name}: old doubts were not settled: {error.message}")
        self.tally.settled(settlement.result.present, settlement.result.absent)

    def _collect(self) -> None:
        """Collect. Where the rows cannot be read, such as for a `where` that chokes on one, the ledger is delivered."""
        until_s = self._share_ends_s()
        options = self.parts.options
        window = row_window(self.parts.clock.now(), recent=options.recent, row_ids=options.row_ids, span=options.span)
        collection = Collection(
            source=self.job.source,
            ledger=self.job.ledger,
            clock=self.parts.clock,
            window=window,
            batch_size=options.batch_size,
            tally=self.tally,
            may_go_on=lambda: self._may_go_on(until_s),
            room=self.parts.allowance.left,
        )
        try:
            collection.run()
            self._look_for_rows(window)
        except ConfigurationError as error:
            self._note(error)

    def _look_for_rows(self, window: RowWindow) -> None:
        if window.row_ids:
            self.rows_not_found = set(self.job.source.not_to_report(window))

    def _note(self, error: ConfigurationError) -> None:
        self.codes.append(error.exit_code)
        self.notes.append(error.message)

    def _share_ends_s(self) -> float:
        now_s = self.parts.host_clock.elapsed_s()
        return now_s + PREPARING_SHARE * (self.parts.deadline_s - now_s)

    def _may_go_on(self, until_s: float) -> bool:
        self.parts.locks.keep()
        return not self.parts.stop.requested and self.parts.host_clock.elapsed_s() < until_s

    def _deliver(self) -> None:
        watch = OutageWatch(
            started_s=self.parts.host_clock.elapsed_s(),
            silence_max_s=SILENCE_AGAIN_MAX_S if self.suspected else SILENCE_MAX_S,
        )
        answers = Answers(tally=self.tally, livemode=self.parts.livemode, watch=watch, jitter=self.parts.jitter)
        limits = DeliveryLimits(
            deadline_s=self.parts.deadline_s,
            grace=self.parts.grace,
            adopt_identifiers_until=self.job.adopt_identifiers_until,
        )
        with self.parts.dispatcher() as dispatcher:
            Delivery(
                ledger=self.job.ledger,
                dispatcher=dispatcher,
                clock=self.parts.clock,
                host_clock=self.parts.host_clock,
                limits=limits,
                allowance=self.parts.allowance,
                answers=answers,
                stop=self.parts.stop,
                lock=self.parts.locks,
                progress=lambda: self.parts.progress(self.tally),
            ).run()
        if answers.stopped is not None:
            self.codes.append(answers.stopped.code)
            self.notes.append(f"{self.job.event_name}: {answers.stopped.reason}")
        self.stopped = answers.stopped

    def _count_open(self) -> None:
        left = self.job.ledger.count_open(now=self.parts.clock.now())
        self.tally.remaining += left.untried_count
        self.tally.held += left.held_count
        if left.problem_count:
            self.tally.problem("held", left.problem_ids, count=left.problem_count)


def _codes(tally: Tally, *, limit_reached: bool) -> Sequence[ExitCode]:
    """Return what one meter's counts mean for the exit code; reasons to stop are added by who knows them."""
    codes = [ExitCode.PROBLEMS] if tally.problems else []
    if tally.failed or (tally.remaining and not limit_reached):
        codes.append(ExitCode.UNAVAILABLE)
    return codes
