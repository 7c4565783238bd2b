"""Error reports: what Stripe tells, window by window, of events that it found invalid after their 200.

No thread makes them: whoever reads events first brings those that have fallen due by the sandbox's clock, each with the
instant at which it fell due.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from meterctl.sandbox.local_stripe.emission import emit_thin
from meterctl.sandbox.local_stripe.errors import no_such
from meterctl.sandbox.local_stripe.events import RelatedObject, ThinEvent
from meterctl.sandbox.local_stripe.model import Json, iso_ms
from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.rejections import NO_METER, AsyncRejection
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

WINDOW_S = 10
"""Length of a validation window, as in all three published examples."""

ERROR_REPORT = "v1.billing.meter.error_report_triggered"
NO_METER_FOUND = "v1.billing.meter.no_meter_found"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One error as a report shows it. `name` is what `request.identifier` holds."""

    message: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorType:
    """The errors of one code; `count` may be more than there are samples."""

    code: str
    count: int
    samples: Sequence[Sample]

    def document(self) -> Json:
        """Return it as a report's data has it."""
        return {
            "code": self.code,
            "error_count": self.count,
            "sample_errors": [
                {"error_message": sample.message, "request": {"identifier": sample.name}} for sample in self.samples
            ],
        }


def bring_due(books: Books, context: Context) -> None:
    """Emit the reports that have fallen due, one for each window and meter."""
    lag = timedelta(seconds=context.options.validation_lag_s)
    due, waiting = defaultdict(list), []
    for rejection in books.unreported:
        end = _window_end(rejection.received)
        if end + lag <= context.now:
            due[end, rejection.meter_id or ""].append(rejection)
        else:
            waiting.append(rejection)
    books.unreported = waiting
    for (end, meter_id), rejections in sorted(due.items()):
        types = _error_types(rejections, context.options)
        _emit(books, meter_id, types, end=end, at=end + lag, options=context.options)


def report_error(
    books: Books,
    context: Context,
    *,
    identifier: str,
    code: str,
    message: str,
    error_count: int,
    meter_id: str | None,
) -> ThinEvent:
    """Emit a report of one sample now, about any identifier, of the window in which an event with it was stored."""
    received = books.stored_at(identifier) or context.now - timedelta(seconds=WINDOW_S)
    about = "" if code == NO_METER else meter_id or _meter_of(books, identifier)
    types = [ErrorType(code=code, count=error_count, samples=[Sample(message=message, name=identifier)])]
    return _emit(books, about, types, end=_window_end(received), at=context.now, options=context.options)


def _meter_of(books: Books, identifier: str) -> str:
    """Return the id of the meter that an event was for, else of the first there is."""
    known = [event.meter_id for event in books.events if event.identifier == identifier and event.meter_id]
    meters = known[-1:] or list(books.meters)
    if not meters:
        raise no_such("billing meter", "", param="meter_id")
    return meters[0]


def _window_end(instant: datetime) -> datetime:
    second = int(instant.timestamp())
    return datetime.fromtimestamp(second - second % WINDOW_S + WINDOW_S, UTC)


def _error_types(rejections: Sequence[AsyncRejection], options: StripeOptions) -> list[ErrorType]:
    """Given a window's rejections, group them by code; sorted, so that no order of concurrent calls shows."""
    by_code = defaultdict(list)
    for rejection in sorted(rejections, key=lambda each: (each.code, each.identifier)):
        by_code[rejection.code].append(Sample(message=rejection.message, name=_name(rejection, options)))
    return [
        ErrorType(code=code, count=len(samples), samples=samples[: options.report_samples_max])
        for code, samples in by_code.items()
    ]


def _name(rejection: AsyncRejection, options: StripeOptions) -> str:
    if options.report_names == "idempotency_key" and rejection.idempotency_key is not None:
        return rejection.idempotency_key
    return rejection.identifier


def _emit(
    books: Books, meter_id: str, types: Sequence[ErrorType], *, end: datetime, at: datetime, options: StripeOptions
) -> ThinEvent:
    related = RelatedObject(id=meter_id, type="billing.meter", url=f"/v1/billing/meters/{meter_id}")
    count = sum(each.count for each in types)
    data: Json = {
        "developer_message_summary": f"There {'is 1 invalid event' if count == 1 else f'are {count} invalid events'}",
        "reason": {"error_count": count, "error_types": [each.document() for each in types]},
        "validation_end": iso_ms(end),
        "validation_start": iso_ms(end - timedelta(seconds=WINDOW_S)),
    }
    emitted = [
        emit_thin(
            books,
            ERROR_REPORT if meter_id else NO_METER_FOUND,
            data,
            related=related if meter_id else None,
            created=at,
            emitted=at,
        )
        for _ in range(2 if options.duplicate_reports else 1)
    ]
    return emitted[0]
