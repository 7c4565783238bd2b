"""Report: take over what dead runs left, expire, settle, collect, deliver, say what came of it, meter by meter."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from meterctl.actions.answers import Answers, Stopped
from meterctl.actions.collect import Collection, row_window
from meterctl.actions.deliver import Delivery, DeliveryLimits
from meterctl.actions.settle import Settlement
from meterctl.actions.tally import Tally, summed
from meterctl.clock import Clock, HostClock
from meterctl.core.allowance import Allowance
from meterctl.core.model import PAST_LIMIT
from meterctl.core.pacing import SILENCE_AGAIN_MAX_S, SILENCE_MAX_S, OutageWatch
from meterctl.errors import ConfigurationError, ExitCode, MeterctlError
from meterctl.logs import get_logger
from meterctl.ports import (
    Dispatcher,
    Lock,
    MeterLedger,
    RowSource,
    RowWindow,
    SettlementLedger,
    StopRequest,
    Totals,
    Undeliverable,
)

log = get_logger()


PREPARING_SHARE = 0.5
"""Part of the time left that a meter's settling or collecting may take: what is due must also be delivered."""


ROW_NOT_FOUND = (
    "no meter has it to report: there is no such row, or it is older than 70 days or excluded by `since` or `where`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """What was asked for. `limit` None: no limit; `recent` None: the full look-back."""

    batch_size: int = 500
    limit: int | None = None
    max_duration: timedelta = timedelta(hours=3)
    lock_timeout_s: float = 0.0
    recent: timedelta | None = None
    row_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterJob:
    """One meter's part of a run: its adapters, ready to work."""

    event_name: str
    source: RowSource
    ledger: MeterLedger
    settlements: SettlementLedger
    totals: Totals
    adopt_identifiers_until: datetime | None = None


class Locks(Lock, Protocol):
    """The run's locks, one per meter."""

    def acquire(self, event_name: str, *, timeout_s: float, stopping: Callable[[], bool]) -> bool:
        """Try to take the meter's lock, for at most `timeout_s` seconds."""
        ...

    def holder(self, event_name: str) -> str:
        """Return who holds it."""
        ...


@dataclass(kw_only=True, slots=True)
class ReportResult:
    """What a run did. `notes` are sentences for stderr; `exit_code` follows from all of it."""

    tallies: list[Tally] = field(default_factory=list)
    codes: list[ExitCode] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def totals(self) -> Tally:
        """All meters together."""
        return summed(self.tallies)

    @property
    def exit_code(self) -> ExitCode:
        """The worst of what happened."""
        return ExitCode.worst(self.codes)


@dataclass(kw_only=True, slots=True)
class Report:
    """One run over several meters. Ports come in ready; `dispatcher` opens one for each meter.

    `undeliverable` finds the open events that no enabled meter, chosen for this run or not, would send.
    """

    options: ReportOptions
    livemode: bool
    grace: timedelta
    clock: Clock
    host_clock: HostClock
    locks: Locks
    dispatcher: Callable[[], AbstractContextManager[Dispatcher]]
    stop: StopRequest
    undeliverable: Callable[[], Sequence[Undeliverable]]
    jitter: Callable[[], float] = random.random
    progress: Callable[[Tally], None] = lambda _: None
    result: ReportResult = field(default_factory=ReportResult)
    allowance: Allowance = field(default_factory=lambda: Allowance(None))
    _deadline_s: float = field(init=False)
    _stopped: Stopped | None = None
    _rows_not_found: set[str] | None = None

    def __post_init__(self) -> None:
        self._deadline_s = self.host_clock.elapsed_s() + self.options.max_duration.total_seconds()

    def run(self, jobs: Mapping[str, Callable[[], MeterJob]]) -> ReportResult:
        """Work through the meters (event_name → how to open its job); a locked one leaves the others running."""
        for event_name in self._in_turn(jobs):
            if self.stop.requested or (self._stopped is not None and self._stopped.whole_run):
                break
            if self._locked_out(event_name):
                continue
            try:
                self._meter(jobs[event_name]())
            except ConfigurationError as error:  # the other meters go on
                self._note(error)
        self.result.tallies.sort(key=lambda tally: list(jobs).index(tally.event_name))
        self._name_undeliverable()
        self._name_rows_not_found()
        if self.stop.signal_number is not None:
            self.result.codes.append(ExitCode(128 + self.stop.signal_number))
        return self.result

    def _in_turn(self, event_names: Iterable[str]) -> list[str]:
        """Return the meters in an order of chance: one with more than a run's work must not always come first."""
        return sorted(event_names, key=lambda _: self.jitter())

    def _name_undeliverable(self) -> None:
        for stray in self.undeliverable():
            tally = Tally(event_name=stray.event_name, remaining=stray.event_count)
            tally.problem("unknown_meter", stray.sample_ids, count=stray.event_count)
            self.result.tallies.append(tally)
            self.result.codes.append(ExitCode.PROBLEMS)

    def _name_rows_not_found(self) -> None:
        """A row that was asked for is of one of the meters, reported, or to be reported; or it is named."""
        if self._rows_not_found:
            self.result.codes.append(ExitCode.BAD_INPUT)
            self.result.notes += [f"row {row_id}: {ROW_NOT_FOUND}" for row_id in sorted(self._rows_not_found)]

    def _locked_out(self, event_name: str) -> bool:
        if self.locks.acquire(event_name, timeout_s=self.options.lock_timeout_s, stopping=lambda: self.stop.requested):
            return False
        self.result.codes.append(ExitCode.LOCKED)
        self.result.notes.append(f"{event_name}: locked by {self.locks.holder(event_name)}")
        return True

    def _meter(self, job: MeterJob) -> None:
        tally = Tally(event_name=job.event_name)
        self.result.tallies.append(tally)
        self._put_in_order(job, tally)
        self._settle(job, tally)
        self._collect(job, tally)
        self._deliver(job, tally)
        self._count_open(job, tally)
        self.result.codes += _codes(tally, limit_reached=self.allowance.left == 0)

    def _put_in_order(self, job: MeterJob, tally: Tally) -> None:
        for kind in job.ledger.untold():
            tally.untold(kind)
        taken_over = job.ledger.take_over()
        if taken_over:
            log.info("taken_over", event_name=job.event_name, events=taken_over)
        expired = job.ledger.expire(expired_before=self.clock.now() - PAST_LIMIT)
        if expired:
            tally.expired += len(expired)
            tally.problem("expired", expired, count=len(expired))

    def _settle(self, job: MeterJob, tally: Tally) -> None:
        """Decide old doubts. Where Stripe's totals cannot be read, they stay, and what is due is delivered."""
        until_s = self._share_ends_s()
        settlement = Settlement(
            ledger=job.settlements,
            totals=job.totals,
            clock=self.clock,
            grace=self.grace,
            may_go_on=lambda: self._may_go_on(until_s),
        )
        try:
            settlement.run()
        except MeterctlError as error:
            self.result.codes.append(error.exit_code)
            self.result.notes.append(f"{job.event_name}: old doubts were not settled: {error.message}")
        tally.settled(settlement.result.present, settlement.result.absent)

    def _collect(self, job: MeterJob, tally: Tally) -> None:
        """Collect. Where the rows cannot be read, such as for a `where` that chokes on one, the ledger is delivered."""
        until_s = self._share_ends_s()
        window = row_window(self.clock.now(), recent=self.options.recent, row_ids=self.options.row_ids)
        collection = Collection(
            source=job.source,
            ledger=job.ledger,
            clock=self.clock,
            window=window,
            batch_size=self.options.batch_size,
            tally=tally,
            may_go_on=lambda: self._may_go_on(until_s),
            room=self.allowance.left,
        )
        try:
            collection.run()
            self._look_for_rows(job, window)
        except ConfigurationError as error:
            self._note(error)

    def _look_for_rows(self, job: MeterJob, window: RowWindow) -> None:
        if window.row_ids:
            not_here = set(job.source.not_to_report(window))
            self._rows_not_found = not_here if self._rows_not_found is None else self._rows_not_found & not_here

    def _note(self, error: ConfigurationError) -> None:
        self.result.codes.append(error.exit_code)
        self.result.notes.append(error.message)

    def _share_ends_s(self) -> float:
        now_s = self.host_clock.elapsed_s()
        return now_s + PREPARING_SHARE * (self._deadline_s - now_s)

    def _may_go_on(self, until_s: float) -> bool:
        self.locks.keep()
        return not self.stop.requested and self.host_clock.elapsed_s() < until_s

    def _deliver(self, job: MeterJob, tally: Tally) -> None:
        suspected = self._stopped is not None and self._stopped.outage
        watch = OutageWatch(
            started_s=self.host_clock.elapsed_s(), silence_max_s=SILENCE_AGAIN_MAX_S if suspected else SILENCE_MAX_S
        )
        answers = Answers(tally=tally, livemode=self.livemode, watch=watch, jitter=self.jitter)
        limits = DeliveryLimits(
            deadline_s=self._deadline_s,
            grace=self.grace,
            adopt_identifiers_until=job.adopt_identifiers_until,
        )
        with self.dispatcher() as dispatcher:
            Delivery(
                ledger=job.ledger,
                dispatcher=dispatcher,
                clock=self.clock,
                host_clock=self.host_clock,
                limits=limits,
                allowance=self.allowance,
                answers=answers,
                stop=self.stop,
                lock=self.locks,
                progress=lambda: self.progress(tally),
            ).run()
        if answers.stopped is not None:
            self.result.codes.append(answers.stopped.code)
            self.result.notes.append(f"{job.event_name}: {answers.stopped.reason}")
        self._stopped = answers.stopped

    def _count_open(self, job: MeterJob, tally: Tally) -> None:
        left = job.ledger.count_open(now=self.clock.now())
        tally.remaining += left.untried_count
        tally.held += left.held_count
        if left.problem_count:
            tally.problem("held", left.problem_ids, count=left.problem_count)


def _codes(tally: Tally, *, limit_reached: bool) -> Sequence[ExitCode]:
    """Return what one meter's counts mean for the exit code; reasons to stop are added by who knows them."""
    codes = [ExitCode.PROBLEMS] if tally.problems else []
    if tally.failed or (tally.remaining and not limit_reached):
        codes.append(ExitCode.UNAVAILABLE)
    return codes
