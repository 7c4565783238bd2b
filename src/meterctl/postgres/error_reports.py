"""Stripe's error reports folded into the ledger: what they name is put in doubt, and its totals settle it.

A report is evidence and no verdict: it may be late, come twice, or be about an event that was in fact counted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg

from meterctl.core.error_report import ErrorReport, ErrorSample, read_report
from meterctl.core.model import Problem
from meterctl.core.stripe_event import StripeEvent
from meterctl.postgres.catalog import fetch
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query

SENT_AROUND = timedelta(days=1)
"""How far from its validation an event may have been accepted that is named by the hash of its key."""

SENT_BEFORE, SENT_AFTER = timedelta(hours=1), timedelta(minutes=15)
"""What a report may mean that does not name it: accepted so long before its validation began, or after it ended.

Stripe says of neither how long it is; the examples it publishes validate 10 s of events at once.
"""

SHOWN_FOR = timedelta(days=35)
"""How long errors that nobody could name are shown: what is older can no longer be corrected by sending."""

CLOSED = frozenset({"replaced", "waived", "superseded", "cancelled"})
"""States that a report changes nothing about: what stands for the usage is another event, or a person's word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Match:
    """An event that a sample may mean. `verdict`: what is known of it already; None: totals must tell.

    No news: an earlier report has put it in doubt already, or has had it rejected.
    """

    sample: ErrorSample
    event_id: int
    meter: str
    event_name: str
    verdict: str | None
    is_news: bool


class ErrorReports:
    """Handles error reports. `levels` are the event_names of which Stripe keeps the last value.

    `event_name_of` gives the event_name of Stripe's meter, without asking Stripe; `unstamp`, given a meter's key, its
    event_name and ids of its events, takes the stamps of accepted ones off their rows. Both are called within the
    transaction.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        *,
        levels: Collection[str],
        event_name_of: Callable[[str], str | None],
        unstamp: Callable[[str, str, Sequence[int]], object],
        now: Callable[[], datetime],
    ) -> None:
        self._connection = connection
        self._levels = levels
        self._event_name_of = event_name_of
        self._unstamp = unstamp
        self._now = now

    def handle(self, event: StripeEvent) -> str:
        """Fold a whole report into the ledger, within the caller's transaction; return what it came to."""
        report = read_report(event)
        (row,) = fetch(self._connection, query("error_reports", "known"), {"event_id": event.id})
        if row["known"]:
            return "known already"
        matches, foreign = self._matches(report)
        event_name = self._event_name(report, matches)
        self._put_in_doubt([match for match in matches if match.verdict is None and match.is_news])
        self._note(report, event_name, matches, foreign)
        return _said(report, matches, foreign, event_name)

    def _matches(self, report: ErrorReport) -> tuple[list[_Match], list[ErrorSample]]:
        """Return what the samples may mean, each event once, and the samples that mean none of ours."""
        named = [(sample, identifier) for sample in report.samples for identifier in sample.identifiers]
        named += self._hashed(report)
        parameters = {
            "ns": list(range(len(named))),
            "identifiers": [identifier for _, identifier in named],
            "livemode": report.event.livemode,
        }
        rows = fetch(self._connection, query("error_reports", "resolve"), parameters)
        by_event = {row["id"]: self._match(named[row["n"]][0], row) for row in rows}
        matched = {named[row["n"]][0] for row in rows}
        return list(by_event.values()), [sample for sample in dict.fromkeys(report.samples) if sample not in matched]

    def _hashed(self, report: ErrorReport) -> list[tuple[ErrorSample, str]]:
        samples = {sample.named: sample for sample in report.samples if sample.may_be_hashed}
        if not samples:
            return []
        parameters = {
            "named": list(samples),
            "since": report.validation_start - SENT_AROUND,
            "until": report.validation_end + SENT_AROUND,
        }
        rows = fetch(self._connection, query("error_reports", "hashed"), parameters)
        return [(samples[row["named"]], row["identifier"]) for row in rows]

    def _match(self, sample: ErrorSample, row: Mapping[str, Any]) -> _Match:
        state, earlier = row["state"], row["earlier"] or []
        is_rejected = state == "rejected" and "rejected" in earlier
        return _Match(
            sample=sample,
            event_id=row["id"],
            meter=row["meter"],
            event_name=row["event_name"],
            verdict=_verdict(state, is_rejected=is_rejected or row["event_name"] in self._levels),
            is_news=not is_rejected and (state != "in_doubt" or None not in earlier),
        )

    def _event_name(self, report: ErrorReport, matches: Sequence[_Match]) -> str | None:
        """Return the meter's event_name; None where nothing of the report can be about us."""
        if matches:
            return matches[0].event_name
        may_be_ours = report.unnamed_count > 0 and report.meter_id is not None
        return self._event_name_of(report.meter_id or "") if may_be_ours else None

    def _put_in_doubt(self, matches: Sequence[_Match]) -> None:
        for of in sorted({(match.meter, match.event_name) for match in matches}):
            ids = [match.event_id for match in matches if (match.meter, match.event_name) == of]
            self._unstamp(*of, ids)
        self._connection.execute(query("error_reports", "doubt"), _columns(matches))

    def _note(
        self, report: ErrorReport, event_name: str | None, matches: Sequence[_Match], foreign: Sequence[ErrorSample]
    ) -> None:
        levels = [match for match in matches if match.verdict == "rejected" and match.is_news]
        self._connection.execute(query("error_reports", "reject"), _columns(levels))
        self._connection.execute(
            query("error_reports", "note"), _report_columns(report, event_name) | {"now": self._now()}
        )
        self._connection.execute(
            query("error_reports", "note_samples"),
            {
                "event_id": report.event.id,
                "named": [*(m.sample.named for m in matches), *(s.named for s in foreign)],
                "codes": [*(m.sample.code for m in matches), *(s.code for s in foreign)],
                "messages": [*(m.sample.message for m in matches), *(s.message for s in foreign)],
                "meter_event_ids": [*(m.event_id for m in matches), *(None for _ in foreign)],
                "verdicts": [*(m.verdict for m in matches), *("foreign" for _ in foreign)],
            },
        )


def _verdict(state: str, *, is_rejected: bool) -> str | None:
    if state in CLOSED:
        return "closed"
    return "rejected" if is_rejected else None


def _columns(matches: Sequence[_Match]) -> dict[str, Any]:
    return {
        "ids": [match.event_id for match in matches],
        "codes": [match.sample.code for match in matches],
        "messages": [match.sample.message for match in matches],
    }


def _report_columns(report: ErrorReport, event_name: str | None) -> dict[str, Any]:
    return {
        "event_id": report.event.id,
        "event_name": event_name,
        "error_count": report.error_count,
        "sample_count": len(report.samples),
        "validation_start": report.validation_start,
        "validation_end": report.validation_end,
        "created": report.event.created,
    }


def _said(
    report: ErrorReport, matches: Sequence[_Match], foreign: Sequence[ErrorSample], event_name: str | None
) -> str:
    """Return what a report came to, for a person."""
    kinds = (
        ("in doubt", sum(match.verdict is None for match in matches)),
        ("rejected", sum(match.verdict == "rejected" for match in matches)),
        ("closed before", sum(match.verdict == "closed" for match in matches)),
        ("foreign", len(foreign)),
        ("not named", report.unnamed_count),
    )
    counts = ", ".join(f"{count} {what}" for what, count in kinds if count)
    return f"{event_name or 'foreign'}: {counts or 'no errors'}"


def report_of(connection: psycopg.Connection, event_id: str) -> list[dict[str, Any]]:
    """Return what an event's error report came to, a line for each sample; nothing of an event that is none."""
    with transaction(connection, read_only=True):
        return fetch(connection, query("error_reports", "of_event"), {"event_id": event_id})


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenReports:
    """What reports leave open of a meter; with `since` and `until`, the usage to compare with Stripe's totals."""

    event_name: str
    problem: Problem
    since: datetime | None
    until: datetime | None


def open_reports(connection: psycopg.Connection, now: datetime, levels: Collection[str]) -> list[OpenReports]:
    """Return what Stripe has rejected, or may have, and nothing has decided yet; without hints. `levels`: as above."""
    parameters = {"before": SENT_BEFORE, "after": SENT_AFTER, "shown_since": now - SHOWN_FOR, "levels": list(levels)}
    with transaction(connection, read_only=True):
        rows = fetch(connection, query("error_reports", "open"), parameters)
    return [
        OpenReports(
            event_name=row["event_name"],
            problem=Problem(code=row["code"], count=row["count"], sample_ids=row["sample_ids"]),
            since=row["since"],
            until=row["until"],
        )
        for row in rows
    ]
