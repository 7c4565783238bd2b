"""v1 events: `GET /v1/events` and `GET /v1/events/{id}`."""

import re
from datetime import UTC, datetime

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import invalid, no_such
from meterctl.sandbox.local_stripe.events import Bounds, is_kept, is_within, listed
from meterctl.sandbox.local_stripe.forms import EXPAND, Param, Params
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.pages import CURSORS, page_of
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

LIST_SHAPE = {
    **CURSORS,
    "created": Param(kind="range"),
    "delivery_success": Param(choices=("true", "false")),  # taken, but every event is listed either way
    "type": Param(),
    "types": Param(kind="list", items_max=20),
    "expand": EXPAND,
}


def list_events(books: Books, params: Params, context: Context) -> Json:
    """Return a page of events, newest first. `params` fit LIST_SHAPE."""
    kind, kinds = forms.text(params, "type"), forms.strings(params, "types").values()
    if kind is not None and kinds:
        raise invalid("You may pass either type or types, but not both.", param="types")
    patterns = [_pattern(kind)] if kind is not None else [re.compile(re.escape(each)) for each in kinds]
    bounds = _bounds(params)
    documents = [
        event.document()
        for event in listed(books.snapshots, context.now, context.options)
        if is_within(event.created, bounds)
        and (not patterns or any(pattern.fullmatch(event.type) for pattern in patterns))
    ]
    return page_of(documents, params, url="/v1/events", what="event")


def retrieve_event(books: Books, event_id: str, context: Context) -> Json:
    """Return an event of the last 30 days; raise the 404 of one that is not there."""
    for event in books.snapshots:
        if event.id == event_id and is_kept(event, context.now):
            return event.document()
    raise no_such("event", event_id, param="id", status=404)


def _pattern(kind: str) -> re.Pattern[str]:
    return re.compile(re.escape(kind).replace(r"\*", ".*"))


def _bounds(params: Params) -> Bounds:
    exactly = forms.text(params, "created")
    bounds = forms.strings(params, "created") if exactly is None else {"gte": exactly, "lte": exactly}
    try:
        return {name: datetime.fromtimestamp(int(bound), UTC) for name, bound in bounds.items()}
    except (ValueError, OverflowError, OSError):
        raise invalid("Invalid timestamp", param="created") from None
