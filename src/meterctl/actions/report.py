"""Report: take over what dead runs left, expire, settle, collect, deliver, say what came of it, meter by meter."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from meterctl.actions.answers import Stopped
from meterctl.actions.meter_report import MeterJob, MeterReport, RunParts
from meterctl.actions.tally import Tally, summed
from meterctl.errors import ConfigurationError, ExitCode
from meterctl.ports import Undeliverable

ROW_NOT_FOUND = (
    "no meter has it to report: there is no such row, or it is older than 70 days or excluded by `since` or `where`"
)


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
class Report(RunParts):
    """One run over several meters.

    `undeliverable` finds the open events and the usage that no enabled meter, chosen for this run or not, would send.
    """

    undeliverable: Callable[[], Sequence[Undeliverable]]
    result: ReportResult = field(default_factory=ReportResult)
    _stopped: Stopped | None = None
    _rows_not_found: set[str] | None = None

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
        suspected = self._stopped is not None and self._stopped.outage
        report = MeterReport(parts=self, job=job, suspected=suspected)
        self.result.tallies.append(report.tally)
        try:
            report.run()
        finally:
            self.result.codes += report.codes
            self.result.notes += report.notes
        self._stopped = report.stopped
        if report.rows_not_found is not None:
            found_nowhere = self._rows_not_found
            self._rows_not_found = (
                report.rows_not_found if found_nowhere is None else found_nowhere & report.rows_not_found
            )

    def _note(self, error: ConfigurationError) -> None:
        self.result.codes.append(error.exit_code)
        self.result.notes.append(error.message)
