"""Stripe's lists of events: snapshots (`GET /v1/events`) and thin events (`GET /v2/core/events`), both of 30 days."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import stripe

from meterctl.core.stripe_event import StripeEvent, read_event
from meterctl.errors import InputError, RefusedError
from meterctl.logs import get_logger
from meterctl.stripe_api.asking import asked

PAGE_SIZE = 100
TYPES_MAX = 20
"""Types that one list may be asked for (OpenAPI, `types`)."""

log = get_logger()


class StripeEvents:
    """`StripeEventLists` over the SDK. What is read is JSON as it came: the SDK's objects would round and rename."""

    def __init__(self, client: stripe.StripeClient, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    def pages(self, types: Collection[str], since: datetime) -> Iterator[list[StripeEvent]]:
        """Yield the events created since then, page by page, newest first. Raises the MeterctlError that fits."""
        for part in lists_of(types):
            read = self._thin if is_thin(part[0]) else self._snapshots
            for chunk in _chunks(part):
                yield from read(chunk, since)

    def _snapshots(self, types: list[str], since: datetime) -> Iterator[list[StripeEvent]]:
        params = {"types": types, "created": {"gte": int(since.timestamp())}, "limit": PAGE_SIZE}
        while True:
            answer = self._get("/v1/events", **params)
            found = answer.get("data") or []
            yield _readable(found)
            if not answer.get("has_more") or not found:
                return
            params["starting_after"] = found[-1]["id"]

    def _thin(self, types: list[str], since: datetime) -> Iterator[list[StripeEvent]]:
        created = {"gte": since.astimezone(UTC).isoformat().replace("+00:00", "Z")}
        answer = self._get("/v2/core/events", types=types, created=created, limit=PAGE_SIZE)
        while True:
            yield _readable(answer.get("data") or [])
            following = answer.get("next_page_url")
            if not following:
                return
            answer = self._get(following)

    def whole(self, event: StripeEvent) -> StripeEvent:
        """Return a thin event with its data. Raises the MeterctlError that fits."""
        found = read_event(self._get(f"/v2/core/events/{quote(event.id, safe='')}"))
        if found.id != event.id or not found.is_whole:
            raise InputError(f"Stripe has no data of {event.id}", hint="look at the event in Stripe's Dashboard")
        return replace(event, payload={**event.payload, **found.payload})

    def meter_event_name(self, meter_id: str) -> str | None:
        """Return a meter's event_name; None where Stripe has no such meter. Raises the MeterctlError that fits."""
        try:
            meter = asked(lambda: self._client.v1.billing.meters.retrieve(meter_id), sleep=self._sleep)
        except RefusedError:
            return None
        return meter.event_name

    def _get(self, path: str, **params: Any) -> Mapping[str, Any]:  # noqa: ANN401 -- Stripe's own parameters
        answer = asked(lambda: self._client.raw_request("get", path, **params), sleep=self._sleep)
        return answer.data if isinstance(answer.data, Mapping) else {}


def is_thin(event_type: str) -> bool:
    """Whether events of this type are in the v2 list: their names say so."""
    return event_type.startswith(("v1.", "v2."))


def lists_of(types: Collection[str]) -> list[list[str]]:
    """Return the types by the list of Stripe's that has them, without a list that has none of them."""
    parts = [sorted(one for one in types if is_thin(one) is thin) for thin in (False, True)]
    return [part for part in parts if part]


def _chunks(types: list[str]) -> Iterator[list[str]]:
    yield from (types[start : start + TYPES_MAX] for start in range(0, len(types), TYPES_MAX))


def _readable(found: list[Any]) -> list[StripeEvent]:
    """Return the events of a page; what is none is logged, and costs the others nothing."""
    events = []
    for document in found:
        try:
            events.append(read_event(document))
        except InputError as error:
            log.warning("event_unreadable", error=error.message)
    return events
