"""What a run did, counted: the figures of `--json`, of the summary line and of the exit code."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from meterctl.core.model import Problem
from meterctl.core.value import formatted
from meterctl.ports import KindCount, SettledEvent

SAMPLES_MAX = 5

HINTS = {
    "identifier_taken": "Stripe knew this identifier before we sent it: `meterctl ledger list --code identifier_taken`",
    "expired": "older than the 35 days Stripe takes: `meterctl ledger waive --code expired --reason …` once noted",
    "held": "Stripe's totals do not tell whether it has them: `meterctl settle` shows the figures and what to do",
    "not_permitted": "check the key's permissions; the events stay due",
    "meter_unavailable": "create or reactivate the meter in Stripe; the events stay due",
    "row_reused": "the ledger has an event of another instant under this row's id: give the row an unused id",
    "fell_to_zero": "more than half of all levels fell to 0 at once, so none of these was sent; if it is true: "
    "`meterctl report-sensors --accept-zeros`",
    "uncounted": "what is inserted there is billed to nobody: `meterctl db adopt` shows and installs what is missing",
    "error_report": "Stripe rejected usage after it had accepted it; its totals decide: `meterctl webhooks list`",
    "unnamed_errors": "Stripe rejected usage without naming it; find it: `meterctl reconcile --meter {meter}{span}`",
    "webhook_failed": "mend the cause, then `meterctl webhooks replay --failed`",
    "unknown_meter": "no enabled meter sends it: restore or enable one in the configuration; what there is stays due",
}
"""Problem → what to do next; other rejections are mended at their cause and retried."""

LATE_HINT = "were accepted after their invoice was final: bill them by hand, and report more often (--recent 2d)"

NEXT_HINT = "mend the cause; the next report takes it"
"""For what is not in the ledger, so that there is nothing to retry."""

RETRY_HINT = "mend the cause, then `meterctl ledger retry --code {code} --reason …`"


COUNTED_AS = {
    "skipped": "skipped",
    "expired": "expired",
    "held": "held",
    "rejected": "rejected",
    "conflict": "rejected",
    "refused": "rejected",
}
"""Outcome of collecting → the count that it adds to. What is pending counts when it is delivered."""

FOR_A_PERSON = {"expired", "held", "rejected", "conflict", "refused", "uncounted"}
"""Outcomes of collecting that are problems."""


def hint_for(code: str) -> str:
    """Return what to do next about a problem."""
    return HINTS.get(code) or RETRY_HINT.format(code=code)


def late_hint(units: Decimal) -> str:
    """Return what to do about units that were accepted after their invoice was final."""
    return f"{formatted(units)} units {LATE_HINT}"


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of one meter, in usage rows. `duplicate` and `late` are parts of `reported`.

    `late_units` are those of the problem `late`, which earlier runs may have left untold.
    """

    event_name: str
    reported: int = 0
    duplicate: int = 0
    late: int = 0
    skipped: int = 0
    rejected: int = 0
    failed: int = 0
    expired: int = 0
    held: int = 0
    remaining: int = 0
    units: Decimal = Decimal(0)
    late_units: Decimal = Decimal(0)
    problems: dict[str, Problem] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Everything this run dealt with; what a limit or the deadline left is outside."""
        return self.reported + self.skipped + self.rejected + self.failed + self.expired + self.held

    def collected(self, kind: KindCount) -> None:
        """Count what collecting found; pending events are counted when they are delivered."""
        counted_as = COUNTED_AS.get(kind.outcome)
        if counted_as is not None:
            setattr(self, counted_as, getattr(self, counted_as) + kind.event_count)
        if kind.outcome in FOR_A_PERSON:
            hint = NEXT_HINT if kind.outcome == "refused" else None
            self.problem(kind.problem_code, kind.sample_ids, count=kind.event_count, hint=hint)

    def settled(self, present: Sequence[SettledEvent], absent: Sequence[SettledEvent]) -> None:
        """Count what Stripe's totals proved; what is due again is counted when it is delivered."""
        self.reported += len(present)
        self.units += sum((event.quantity for event in present), Decimal(0))
        late = [event.quantity for event in present if event.late]
        self.late += len(late)
        self.note_late(len(late), sum(late, Decimal(0)))
        expired = [str(event.source_row_id or event.id) for event in absent if event.expired]
        self.expired += len(expired)
        if expired:
            self.problem("expired", expired, count=len(expired))
        for event in (event for event in absent if event.rejected):
            self.rejected += 1
            self.problem(event.code or "rejected", [str(event.source_row_id or event.id)])

    def problem(self, code: str, sample_ids: Iterable[str], *, count: int = 1, hint: str | None = None) -> None:
        """Note something for a person; `hint`: another than its code's."""
        if code not in self.problems:
            self.problems[code] = Problem(code=code, hint=hint or hint_for(code))
        problem = self.problems[code]
        problem.count += count
        problem.sample_ids += list(sample_ids)[: SAMPLES_MAX - len(problem.sample_ids)]

    def untold(self, kind: KindCount) -> None:
        """Note what an earlier run found and could not say. It is in that run's counts, not in these."""
        if kind.outcome == "late":
            self.note_late(kind.event_count, kind.units)
        else:
            self.problem(kind.problem_code, kind.sample_ids, count=kind.event_count)

    def note_late(self, count: int, units: Decimal) -> None:
        """Note what was accepted after its invoice was final, and how much that is."""
        if count:
            self.problem("late", [], count=count)
            self.late_units += units
            self.problems["late"].hint = late_hint(self.late_units)

    def after(self, earlier: "Tally") -> "Tally":
        """Return these counts with what an earlier attempt of the job did. What it left, this one has counted anew."""
        done = ("reported", "duplicate", "late", "rejected", "expired", "units")
        return replace(self, **{name: getattr(self, name) + getattr(earlier, name) for name in done})

    def figures(self) -> dict[str, int | str]:
        """Return the counts under the names `--json` uses."""
        return {
            "total": self.total,
            "reported": self.reported,
            "duplicate": self.duplicate,
            "late": self.late,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "failed": self.failed,
            "expired": self.expired,
            "held": self.held,
            "remaining": self.remaining,
            "units": formatted(self.units),
        }


def summed(tallies: Iterable[Tally]) -> Tally:
    """Return all meters' counts as one, problems merged."""
    total = Tally(event_name="")
    for tally in tallies:
        for name in ("reported", "duplicate", "late", "skipped", "rejected", "failed", "expired", "held", "remaining"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.units += tally.units
        for problem in tally.problems.values():
            if problem.code == "late":
                total.note_late(problem.count, tally.late_units)
            else:
                total.problem(problem.code, problem.sample_ids, count=problem.count, hint=problem.hint)
    return total


def together(attempts: Iterable[Iterable[Tally]]) -> list[Tally]:
    """Return one tally a meter for all attempts of a job: problems as the last found them, counts of all."""
    meters: dict[str, Tally] = {}
    for tally in (tally for attempt in attempts for tally in attempt):
        earlier = meters.get(tally.event_name)
        meters[tally.event_name] = tally.after(earlier) if earlier else tally
    return list(meters.values())
