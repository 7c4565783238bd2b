"""Which operation a method and path mean, what parameters it has, and what carries it out."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from meterctl.sandbox.local_stripe import core_events, prices, resources, rules, snapshots, summaries
from meterctl.sandbox.local_stripe.faults import METER_EVENTS
from meterctl.sandbox.local_stripe.forms import Params, Shape
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One call of the API. `run(books, id in the path or "", params, context)` gives the body of a 200."""

    name: str
    method: str
    path: str
    shape: Shape
    run: Callable[[Books, str, Params, Context], Json]


OPERATIONS = (
    Operation(
        name="account.retrieve",
        method="GET",
        path="/v1/account",
        shape=resources.RETRIEVE_SHAPE,
        run=lambda _books, _id, _params, context: resources.account(context),
    ),
    Operation(
        name="customers.create",
        method="POST",
        path="/v1/customers",
        shape=resources.CUSTOMER_SHAPE,
        run=lambda books, _id, params, context: resources.create_customer(books, params, context).document(),
    ),
    Operation(
        name="customers.retrieve",
        method="GET",
        path="/v1/customers/{id}",
        shape=resources.RETRIEVE_SHAPE,
        run=lambda books, customer_id, _params, _context: resources.retrieve_customer(books, customer_id).document(),
    ),
    Operation(
        name="meters.create",
        method="POST",
        path="/v1/billing/meters",
        shape=resources.METER_SHAPE,
        run=lambda books, _id, params, context: resources.create_meter(books, params, context).document(),
    ),
    Operation(
        name="meters.list",
        method="GET",
        path="/v1/billing/meters",
        shape=resources.METER_LIST_SHAPE,
        run=lambda books, _id, params, _context: resources.list_meters(books, params),
    ),
    Operation(
        name="meters.retrieve",
        method="GET",
        path="/v1/billing/meters/{id}",
        shape=resources.RETRIEVE_SHAPE,
        run=lambda books, meter_id, _params, _context: resources.retrieve_meter(books, meter_id).document(),
    ),
    Operation(
        name="meters.deactivate",
        method="POST",
        path="/v1/billing/meters/{id}/deactivate",
        shape=resources.RETRIEVE_SHAPE,
        run=lambda books, meter_id, _params, context: resources.deactivate_meter(books, meter_id, context).document(),
    ),
    Operation(
        name="meters.reactivate",
        method="POST",
        path="/v1/billing/meters/{id}/reactivate",
        shape=resources.RETRIEVE_SHAPE,
        run=lambda books, meter_id, _params, context: resources.reactivate_meter(books, meter_id, context).document(),
    ),
    Operation(
        name="prices.create",
        method="POST",
        path="/v1/prices",
        shape=prices.PRICE_SHAPE,
        run=lambda books, _id, params, context: prices.create_price(books, params, context).document(),
    ),
    Operation(
        name="prices.list",
        method="GET",
        path="/v1/prices",
        shape=prices.PRICE_LIST_SHAPE,
        run=lambda books, _id, params, _context: prices.list_prices(books, params),
    ),
    Operation(
        name="event_summaries.list",
        method="GET",
        path="/v1/billing/meters/{id}/event_summaries",
        shape=summaries.SHAPE,
        run=summaries.list_summaries,
    ),
    Operation(
        name="events.list",
        method="GET",
        path="/v1/events",
        shape=snapshots.LIST_SHAPE,
        run=lambda books, _id, params, context: snapshots.list_events(books, params, context),
    ),
    Operation(
        name="events.retrieve",
        method="GET",
        path="/v1/events/{id}",
        shape=resources.RETRIEVE_SHAPE,
        run=lambda books, event_id, _params, context: snapshots.retrieve_event(books, event_id, context),
    ),
    Operation(
        name="core_events.list",
        method="GET",
        path="/v2/core/events",
        shape=core_events.LIST_SHAPE,
        run=lambda books, _id, params, context: core_events.list_events(books, params, context),
    ),
    Operation(
        name="core_events.retrieve",
        method="GET",
        path="/v2/core/events/{id}",
        shape={},
        run=lambda books, event_id, _params, context: core_events.retrieve_event(books, event_id, context),
    ),
    Operation(
        name=METER_EVENTS,
        method="POST",
        path="/v1/billing/meter_events",
        shape=rules.SHAPE,
        run=lambda books, _id, params, context: rules.create_meter_event(books, params, context).document(),
    ),
)

_PLAIN = {(operation.method, operation.path): operation for operation in OPERATIONS if "{id}" not in operation.path}
_WITH_ID = [
    (operation.method, re.compile(operation.path.replace("{id}", "([^/]+)")), operation)
    for operation in OPERATIONS
    if "{id}" in operation.path
]


def find(method: str, path: str) -> tuple[Operation, str] | None:
    """Return the operation and the id in its path ("" where it has none), or None."""
    operation = _PLAIN.get((method, path))
    if operation is not None:
        return operation, ""
    for its_method, pattern, candidate in _WITH_ID:
        match = pattern.fullmatch(path) if method == its_method else None
        if match is not None:
            return candidate, match.group(1)
    return None
