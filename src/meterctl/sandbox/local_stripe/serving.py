"""HTTP in front of the engine: read a request, let time pass, answer, or leave the client without an answer."""

import asyncio
import socket
import struct
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus

from aiohttp import web

from meterctl.sandbox.local_stripe.calls import Call
from meterctl.sandbox.local_stripe.control import Control
from meterctl.sandbox.local_stripe.engine import Engine, error_answer
from meterctl.sandbox.local_stripe.events import API_VERSION
from meterctl.sandbox.local_stripe.faults import INTERCEPTING, Fault, FaultKind
from meterctl.sandbox.local_stripe.idempotency import Answer

LEFT_POLL_S = 0.02
"""How often a call that is never answered looks whether its client has gone."""


class Ending(Enum):
    """How a request ends for its client."""

    ANSWERED = "answered"
    CLOSED = "closed"
    RESET = "reset"
    HANGING = "hanging"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conduct:
    """What the client gets; `answer` is None where it gets nothing."""

    ending: Ending = Ending.ANSWERED
    answer: Answer | None = None


class Service:
    """The request handler of the server."""

    def __init__(self, engine: Engine, control: Control) -> None:
        self._engine = engine
        self._control = control
        self._date = (0, "")

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, or not."""
        body = (await request.read()).decode(errors="replace")
        if request.path.startswith("/_sandbox"):
            status, document = self._control.answer(request.method, request.path, request.query_string, body)
            return web.json_response(document, status=status)
        form = body if request.method == "POST" else request.query_string
        call, fault = self._engine.arrive(request.method, request.path, form, request.headers)
        at = self._engine.clock.now()
        conduct = await self._conduct(call, fault)
        self._engine.note(call, conduct.answer, fault, at)
        return await self._end(request, call, conduct)

    async def _conduct(self, call: Call, fault: Fault | None) -> Conduct:
        if self._engine.options.mute:
            return Conduct(ending=Ending.HANGING)
        intercepted = None if fault is None else _intercepted(call, fault)
        if intercepted is not None:
            return intercepted
        answer = await self._executed(call, fault)
        return _ended(answer, fault)

    async def _executed(self, call: Call, fault: Fault | None) -> Answer:
        half_s = self._engine.options.latency_ms / 2000
        admitted = self._engine.admit(call)
        if isinstance(admitted, Answer):
            await _pass(2 * half_s)
            return admitted
        try:
            await _pass(half_s + _delay_s(fault))
            answer = self._engine.execute(admitted, fault)
            await _pass(half_s)
        finally:
            self._engine.release(admitted)
        return answer

    async def _end(self, request: web.BaseRequest, call: Call, conduct: Conduct) -> web.StreamResponse:
        if conduct.answer is not None:
            return self._response(request, call, conduct.answer)
        if conduct.ending is Ending.HANGING:
            await _client_left(request)
        _drop(request, reset=conduct.ending is Ending.RESET)
        return web.Response()  # goes nowhere: the connection is closed

    def _response(self, request: web.BaseRequest, call: Call, answer: Answer) -> web.Response:
        headers = {"Date": self._http_date(), "Content-Type": answer.content_type}
        if answer.content_type == "application/json":  # else a proxy speaks, and that knows nothing of these
            headers |= self._stripe_headers(request, call, answer)
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    @staticmethod
    def _stripe_headers(request: web.BaseRequest, call: Call, answer: Answer) -> dict[str, str]:
        headers = {
            "Request-Id": call.request_id,
            "Stripe-Version": request.headers.get("Stripe-Version", API_VERSION),
            **answer.headers,
        }
        if call.idempotency_key is not None:
            headers["Idempotency-Key"] = call.idempotency_key
        if answer.replayed:
            headers["Idempotent-Replayed"] = "true"
            headers["Original-Request"] = answer.request_id
        return headers

    def _http_date(self) -> str:
        second = int(self._engine.clock.now().timestamp())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]


async def _pass(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


def _delay_s(fault: Fault | None) -> float:
    return fault.delay_s if fault is not None and fault.kind is FaultKind.SLOW else 0


def _intercepted(call: Call, fault: Fault) -> Conduct | None:
    """Return what a fault does before the call is looked at, None where it lets it through."""
    if fault.kind in INTERCEPTING:
        return Conduct(answer=error_answer(call, fault.error(call.path)))
    if fault.kind is FaultKind.RESET:
        return Conduct(ending=Ending.RESET)
    if fault.when == "before" and fault.kind is FaultKind.TIME_OUT:
        return Conduct(ending=Ending.HANGING)
    if fault.when == "before" and fault.kind is FaultKind.HTML:
        return Conduct(answer=_page(call, fault))
    return None


def _ended(answer: Answer, fault: Fault | None) -> Conduct:
    """Return what reaches the client of an executed call."""
    if fault is None:
        return Conduct(answer=answer)
    if fault.kind is FaultKind.LOST_ANSWER:
        return Conduct(ending=Ending.CLOSED)
    if fault.kind is FaultKind.TIME_OUT:
        return Conduct(ending=Ending.HANGING)
    return Conduct(answer=_page(answer, fault)) if fault.kind is FaultKind.HTML else Conduct(answer=answer)


def _page(about: Call | Answer, fault: Fault) -> Answer:
    status = fault.status or HTTPStatus.BAD_GATEWAY
    title = f"{status} {HTTPStatus(status).phrase}"
    body = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return Answer(status=status, body=body.encode(), headers={}, request_id=about.request_id, content_type="text/html")


async def _client_left(request: web.BaseRequest) -> None:
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110  # aiohttp tells nobody
        await asyncio.sleep(LEFT_POLL_S)


def _drop(request: web.BaseRequest, *, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if reset and connection is not None:
        # lingering for 0 s makes close() send RST instead of FIN
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
