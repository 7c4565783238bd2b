"""What a key may do, found out without doing it: Stripe looks at the key before it looks at what is asked.

It is asked for what it must refuse for a reason of its own. A 400 then says that the key may; a 403, that it may not.
"""

import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime

import stripe

from meterctl.core.diagnosis import Finding, passed, warned
from meterctl.errors import NotPermittedError, RefusedError
from meterctl.stripe_api.asking import asked
from meterctl.stripe_api.events import StripeEvents, lists_of

NOBODY = "cus_meterctl_doctor"
LONG_AGO_S = 1
"""A timestamp, in unix seconds: Stripe takes none older than 35 days."""

BAD_REQUEST = 400


def write_permission(client: stripe.StripeClient) -> Iterator[Finding]:
    """Find out whether the key may send meter events. Raises the MeterctlError that fits if not.

    The event that is sent has no meter, no customer, the value 0 and a timestamp of 1970: each alone keeps it from
    every invoice. It is complete all the same, so that no check of parameters could come before that of the key.
    """
    name = f"meterctl_doctor_{uuid.uuid4().hex}"
    try:
        asked(
            lambda: client.v1.billing.meter_events.create(
                {
                    "event_name": name,
                    "payload": {"stripe_customer_id": NOBODY, "value": "0"},
                    "identifier": name,
                    "timestamp": LONG_AGO_S,
                },
                {"idempotency_key": name, "max_network_retries": 0},
            )
        )
    except RefusedError as error:
        if not _says_bad_request(error):
            raise
        yield passed("the key may send meter events: one that nobody could be billed for was refused for itself alone")
        return
    message = f"an event of 1970, of no meter and of no customer was accepted ({name})"
    yield warned(message, "it bills nobody; is this Stripe? see METERCTL_STRIPE_API_BASE, and proxies")


def _says_bad_request(error: RefusedError) -> bool:
    return isinstance(error.__cause__, stripe.StripeError) and error.__cause__.http_status == BAD_REQUEST


def totals_permission(client: stripe.StripeClient, meter_id: str) -> Iterator[Finding]:
    """Find out whether the key may read totals, without which old doubts cannot be settled. One read, of nobody's."""
    try:
        asked(
            lambda: client.v1.billing.meters.event_summaries.list(
                meter_id, {"customer": NOBODY, "start_time": 0, "end_time": 60}, {"max_network_retries": 0}
            )
        )
    except NotPermittedError as error:
        message = f"the key may not read totals, by which doubts of a day are settled: {error.message}"
        yield warned(message, error.hint)
        return
    except RefusedError:
        pass  # Stripe does not know the customer: it has looked
    yield passed("the key may read totals")


def events_permission(client: stripe.StripeClient, types: Collection[str]) -> Iterator[Finding]:
    """Find out whether the key may list the events that are handled, of this very second."""
    events = StripeEvents(client)
    for part in lists_of(types):
        try:
            next(events.pages(part, datetime.now(UTC)))
        except NotPermittedError as error:
            message = f"the key may not list the events that webhooks.handle names ({part[0]}, …): {error.message}"
            yield warned(message, error.hint)
        else:
            yield passed(f"the key may list events ({part[0]}, …)")
