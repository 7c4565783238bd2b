"""`GET /v1/billing/meters/{id}/event_summaries`: aggregation over time, as late as the lag says."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import invalid, no_such
from meterctl.sandbox.local_stripe.forms import EXPAND, Param, Params
from meterctl.sandbox.local_stripe.model import WINDOW_S, Json, Meter, StoredEvent
from meterctl.sandbox.local_stripe.pages import CURSORS, page_of
from meterctl.sandbox.local_stripe.resources import retrieve_meter
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books, aggregate, standing_of

SHAPE = {
    **CURSORS,
    "customer": Param(required=True),
    "start_time": Param(kind="integer", required=True),
    "end_time": Param(kind="integer", required=True),
    "value_grouping_window": Param(choices=("day", "hour")),
    "expand": EXPAND,
}

MINUTE_S = 60
YEAR_9999_S = 253_402_300_799
"""Last second a date can name; bounds beyond it are a mistake."""


ZERO_ROWS_MAX = 10_000
"""Most windows that are filled with zeros: a bound of ours, over a year of hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A checked summary request: half-open bounds in unix seconds; `step_s` None is one summary of the whole range."""

    customer: str
    start_s: int
    end_s: int
    step_s: int | None


def list_summaries(books: Books, meter_id: str, params: Params, context: Context) -> Json:
    """Return a page of summaries, newest window first. `params` fit SHAPE."""
    meter = retrieve_meter(books, meter_id)
    question = _question(params)
    if question.customer not in books.customers:
        raise no_such("customer", question.customer, param="customer")
    groups = _groups(_visible(books, meter, question, context), question)
    if context.options.zero_usage == "zero_row":
        groups = {start: groups.get(start, []) for start in _starts(question)}
    documents = [_document(meter, question, start, groups[start]) for start in sorted(groups, reverse=True)]
    return page_of(documents, params, url=f"/v1/billing/meters/{meter.id}/event_summaries", what="event summary")


def _question(params: Params) -> Question:
    window = forms.text(params, "value_grouping_window")
    start_s, end_s = (forms.integer(params, name) or 0 for name in ("start_time", "end_time"))
    step_s = None if window is None else WINDOW_S[window]
    unit_s, unit = (MINUTE_S, "minute") if window is None else (WINDOW_S[window], f"UTC {window}")
    for name, bound_s in (("start_time", start_s), ("end_time", end_s)):
        if not 0 <= bound_s <= YEAR_9999_S:
            raise invalid(f"Invalid timestamp: {bound_s}", param=name)
        if bound_s % unit_s:
            raise invalid(f"The {name} must be aligned with {unit} boundaries. Received {bound_s}.", param=name)
    if start_s >= end_s:
        raise invalid("The start_time must be before the end_time.", param="start_time")
    return Question(customer=forms.text(params, "customer") or "", start_s=start_s, end_s=end_s, step_s=step_s)


def _visible(books: Books, meter: Meter, question: Question, context: Context) -> list[StoredEvent]:
    lag = timedelta(seconds=context.options.summary_lag_s)
    seen = (event for event in books.usage(meter, question.customer) if event.received + lag <= context.now)
    return [
        event for event in standing_of(meter, seen) if question.start_s <= event.timestamp.timestamp() < question.end_s
    ]


def _groups(events: list[StoredEvent], question: Question) -> dict[int, list[StoredEvent]]:
    groups: dict[int, list[StoredEvent]] = defaultdict(list)
    for event in events:
        at_s = int(event.timestamp.timestamp())
        groups[question.start_s if question.step_s is None else at_s - at_s % question.step_s].append(event)
    return groups


def _starts(question: Question) -> range:
    starts = range(question.start_s, question.end_s, question.step_s or question.end_s - question.start_s)
    if len(starts) > ZERO_ROWS_MAX:
        raise invalid(f"The range holds {len(starts)} windows; at most {ZERO_ROWS_MAX} are shown.", param="end_time")
    return starts


def _document(meter: Meter, question: Question, start_s: int, events: list[StoredEvent]) -> Json:
    end_s = question.end_s if question.step_s is None else start_s + question.step_s
    told = f"{meter.id}/{question.customer}/{start_s}/{end_s}"
    return {
        "id": f"mtrusg_{hashlib.sha256(told.encode()).hexdigest()[:24]}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(aggregate(events, meter.formula)),
        "end_time": end_s,
        "livemode": meter.livemode,
        "meter": meter.id,
        "start_time": start_s,
    }
