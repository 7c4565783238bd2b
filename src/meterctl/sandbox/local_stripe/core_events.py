"""v2 events: `GET /v2/core/events` and `GET /v2/core/events/{id}`."""

from datetime import datetime

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import invalid, no_such
from meterctl.sandbox.local_stripe.events import Bounds, is_kept, is_within, listed
from meterctl.sandbox.local_stripe.forms import Param, Params
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.pages import linked_page_of
from meterctl.sandbox.local_stripe.reports import bring_due
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

LIST_SHAPE = {
    "created": Param(kind="hash", fields={name: Param() for name in ("gt", "gte", "lt", "lte")}),
    "limit": Param(kind="integer"),
    "object_id": Param(),
    "page": Param(),
    "types": Param(kind="list", items_max=20),
}


def list_events(books: Books, params: Params, context: Context) -> Json:
    """Return a page of events, newest first. `params` fit LIST_SHAPE."""
    bring_due(books, context)
    kinds, bounds = set(forms.strings(params, "types").values()), _bounds(params)
    object_id = forms.text(params, "object_id")
    documents = [
        event.document(with_data=context.options.v2_list_has_data)
        for event in listed(books.thin_events, context.now, context.options)
        if is_within(event.created, bounds)
        and (not kinds or event.type in kinds)
        and (object_id is None or (event.related is not None and event.related.id == object_id))
    ]
    return linked_page_of(documents, params, url="/v2/core/events")


def retrieve_event(books: Books, event_id: str, context: Context) -> Json:
    """Return an event of the last 30 days with its data; raise the 404 of one that is not there."""
    bring_due(books, context)
    for event in books.thin_events:
        if event.id == event_id and is_kept(event, context.now):
            return event.document(with_data=True)
    raise no_such("event", event_id, param="id", status=404)


def _bounds(params: Params) -> Bounds:
    bounds = {}
    for name, text in forms.strings(params, "created").items():
        try:
            bounds[name] = datetime.fromisoformat(text)
        except ValueError:
            raise invalid(f"Invalid timestamp: {text}", param=f"created[{name}]") from None
        if bounds[name].tzinfo is None:
            raise invalid(f"A timestamp needs an offset: {text}", param=f"created[{name}]")
    return bounds
