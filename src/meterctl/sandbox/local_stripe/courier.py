"""Brings events to the endpoints, in the server's loop, beside the answers."""

import asyncio

import aiohttp

from meterctl.sandbox.local_stripe.deliveries import Delivery, Endpoint, body_of, signature
from meterctl.sandbox.local_stripe.engine import Engine
from meterctl.sandbox.local_stripe.events import SnapshotEvent, ThinEvent
from meterctl.sandbox.local_stripe.reports import bring_due

POLL_S = 0.02
"""How often new events are looked for: reports fall due by the sandbox's clock, of which nobody tells."""

ANSWER_TIMEOUT_S = 5.0

USER_AGENT = "Stripe/1.0 (+https://stripe.com/docs/webhooks)"


class Courier:
    """Delivers each event that an endpoint wants, again and again by `delivery_retry_s`, each time signed anew."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def run(self) -> None:
        """Deliver until cancelled."""
        connector = aiohttp.TCPConnector(force_close=True)
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as deliveries,
        ):
            while True:
                for endpoint, event in self._new():
                    for _ in range(2 if self._engine.options.duplicate_deliveries else 1):
                        deliveries.create_task(self._deliver(session, endpoint, event))
                await asyncio.sleep(POLL_S)

    def _new(self) -> list[tuple[Endpoint, SnapshotEvent | ThinEvent]]:
        engine, found = self._engine, []
        with engine.lock:
            for endpoint in engine.endpoints:
                books = engine.books(livemode=endpoint.livemode)
                bring_due(books, engine.context())
                found += [(endpoint, event) for event in endpoint.take_new(books)]
        return found

    async def _deliver(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, event: SnapshotEvent | ThinEvent
    ) -> None:
        body = body_of(event)
        for wait_s in (0, *self._engine.options.delivery_retry_s):
            await asyncio.sleep(wait_s)
            if endpoint not in self._engine.endpoints:
                return  # a reset has forgotten it
            t = int(self._engine.clock.now().timestamp())
            status = await _post(session, endpoint.url, body, signature(body, endpoint.secrets, t))
            delivery = Delivery(event_id=event.id, url=endpoint.url, status=status, t=t)
            self._engine.deliveries.append(delivery)
            if delivery.succeeded:
                return


async def _post(session: aiohttp.ClientSession, url: str, body: bytes, signed: str) -> int | None:
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": signed,
        "User-Agent": USER_AGENT,
    }
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return None
