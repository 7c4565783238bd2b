"""The control API, `/_sandbox/…`: JSON in, JSON out, no key needed.

    GET    /_sandbox/               this list
    GET    /_sandbox/options        the options in force
    PATCH  /_sandbox/options        {"identifier_window_h": 48, "unknown_customer": "later", "latency_ms": 100, …}
    GET    /_sandbox/clock          {"now", "frozen"}
    POST   /_sandbox/clock          {"set": RFC 3339 or unix seconds, "frozen": true} | {"advance_s": 3600} |
                                    {"freeze": true} | {"reset": true}
    GET    /_sandbox/faults         those in force, with how often each matched and struck
    POST   /_sandbox/faults         a fault or a list of them: {"kind": "lost_answer", "nth": 3, "times": 1, …}
    DELETE /_sandbox/faults         none any more, random ones neither
    PUT    /_sandbox/faults/random  {"seed": 7, "rate": 0.1, "kinds": ["lost_answer", "error_500"], …}
    DELETE /_sandbox/faults/random
    POST   /_sandbox/customers      {"id": "cus_…", "name": …, "livemode": false}, or a list of them
    GET    /_sandbox/customers      ?livemode=true for live data, here and below
    POST   /_sandbox/keys           {"key": "rk_test_…", "allowed": ["meter_events.create", "meters.*"]}
    DELETE /_sandbox/keys           {"key": …} answers 401 from now on
    GET    /_sandbox/events         everything stored, values as text
    GET    /_sandbox/totals         exact totals per event_name and customer, as text
    GET    /_sandbox/rejections     events answered with 200 and dropped afterwards
    POST   /_sandbox/rejections     {"identifier", "customer", "event_name", "times": 1, "code", "livemode"}: drop what
                                    matches next after its 200
    PUT    /_sandbox/rejections/random  {"seed": 7, "rate": 0.1, "false_rate": 0.05, …}
    DELETE /_sandbox/rejections/random
    POST   /_sandbox/reports        {"identifier", "code", "message", "error_count", "meter_id"}: an error report now
    GET    /_sandbox/stripe_events  every event of v1 and v2, whatever the lists show
    POST   /_sandbox/stripe_events  {"type", "object", "created", "livemode", …}: any event of v1; answers its id
    POST   /_sandbox/subscriptions  {"customer", "id", "status", "period_start", "period_end", "start_date",
                                    "metadata"}: begins one, answers its id. Then, each telling an event of that id:
    POST   /_sandbox/subscriptions/update  {"id", "status", "period_start", "period_end"}
    POST   /_sandbox/subscriptions/end     {"id"}
    POST   /_sandbox/subscriptions/fail_invoice  {"id"}
    POST   /_sandbox/subscriptions/complete_checkout  {"id", "client_reference_id", "metadata"}
    POST   /_sandbox/endpoints      {"url": on loopback, "secrets": ["whsec_…"], "types": ["*"], "thin": false}: deliver
                                    every new event there, signed
    GET    /_sandbox/deliveries     every attempt: event, URL, status, time of the signature
    GET    /_sandbox/requests       ?operation=meter_events.create: the log, and counts by operation and status
    POST   /_sandbox/down           {"seconds": 2}: refuse connections for so long
    POST   /_sandbox/reset          as at the start

A fault's fields: kind (lost_answer, reset, time_out, slow, error_500, bad_request, html, rate_limited, lock_timeout,
unauthorized, forbidden, not_found, request_timeout, conflict), nth, times (null: for ever), operation, identifier,
customer, event_name, when (before or after execution), status, code, message, delay_s. Errors are
`{"error": "what is wrong"}` with 400 or 404.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Protocol

from meterctl.sandbox.local_stripe import bodies, event_control
from meterctl.sandbox.local_stripe.bodies import Body
from meterctl.sandbox.local_stripe.event_console import EventConsole
from meterctl.sandbox.local_stripe.fault_documents import fault_of, random_faults_of
from meterctl.sandbox.local_stripe.model import Json, iso


class _HasRecord(Protocol):
    def record(self) -> Json: ...


class Control:
    """Answers the control API from a console. `go_down` refuses connections for so many seconds."""

    def __init__(self, console: EventConsole, go_down: Callable[[float], None]) -> None:
        self._console = console
        self._go_down = go_down
        self._answers: dict[tuple[str, str], Callable[[Body], object]] = {
            ("GET", ""): lambda _: {"help": (__doc__ or "").splitlines()},
            ("GET", "options"): lambda _: asdict(console.options),
            ("GET", "clock"): lambda _: self._clock(),
            ("GET", "faults"): lambda _: console.faults(),
            ("GET", "customers"): lambda body: [it.document() for it in console.customers(livemode=bodies.live(body))],
            ("GET", "events"): lambda body: _records(console.events(livemode=bodies.live(body))),
            ("GET", "totals"): lambda body: self._totals(livemode=bodies.live(body)),
            ("GET", "rejections"): lambda body: _records(console.async_rejections(livemode=bodies.live(body))),
            ("GET", "requests"): self._requests,
            **event_control.answers(console),
        }
        self._commands: dict[tuple[str, str], Callable[[Body], None]] = {
            ("PATCH", "options"): console.patch_options,
            ("POST", "clock"): self._set_clock,
            ("POST", "faults"): self._add_faults,
            ("DELETE", "faults"): lambda _: console.clear_faults(),
            ("PUT", "faults/random"): lambda body: console.set_random_faults(random_faults_of(body)),
            ("DELETE", "faults/random"): lambda _: console.set_random_faults(None),
            ("POST", "customers"): self._create_customers,
            ("POST", "keys"): self._add_key,
            ("DELETE", "keys"): lambda body: console.revoke_key(bodies.text(body, "key")),
            ("POST", "down"): lambda body: self._go_down(bodies.number(body, "seconds")),
            ("POST", "reset"): lambda _: console.reset(),
            **event_control.commands(console),
        }

    def answer(self, method: str, path: str, query: str, text: str) -> tuple[int, object]:
        """Return status and JSON document for a request to `/_sandbox…`."""
        place = (method, path.removeprefix("/_sandbox").strip("/"))
        try:
            if place in self._commands:
                self._commands[place](bodies.read(query, text))
                return 200, self._shown_after(place[1])
            if place in self._answers:
                return 200, self._answers[place](bodies.read(query, text))
        except (ValueError, OverflowError) as error:
            return 400, {"error": str(error)}
        return 404, {"error": f"There is no {method} {path}; GET /_sandbox/ lists what there is."}

    def _shown_after(self, command: str) -> object:
        """Options, clock and faults answer with what is in force now; other paths may be long."""
        short = command in ("options", "clock", "faults")
        return self._answers["GET", command]({}) if short else {"done": True}

    def _clock(self) -> Json:
        return {"now": iso(self._console.clock.now()), "frozen": self._console.clock.frozen}

    def _set_clock(self, body: Body) -> None:
        clock = self._console.clock
        if "set" in body:
            clock.set(bodies.instant(body, "set"), frozen=body.get("frozen") is True)
        elif "advance_s" in body:
            clock.advance(timedelta(seconds=bodies.number(body, "advance_s")))
        elif body.get("freeze") is True:
            clock.freeze()
        elif body.get("reset") is True:
            clock.reset()
        else:
            raise ValueError("Say `set`, `advance_s`, `freeze` or `reset`.")

    def _add_faults(self, body: Body) -> None:
        for fault in [fault_of(document) for document in bodies.objects(body)]:
            self._console.add_fault(fault)

    def _create_customers(self, body: Body) -> None:
        for wanted in bodies.objects(body):
            chosen = bodies.text(wanted, "id") if "id" in wanted else None
            name = bodies.text(wanted, "name") if "name" in wanted else None
            self._console.create_customer(chosen, name=name, livemode=bodies.live(wanted))

    def _add_key(self, body: Body) -> None:
        allowed = body.get("allowed")
        if allowed is not None and not isinstance(allowed, list):
            raise ValueError("`allowed` is a list of operations.")
        self._console.add_key(bodies.text(body, "key"), allowed=allowed)

    def _totals(self, *, livemode: bool) -> list[Json]:
        totals = self._console.totals(livemode=livemode)
        return [
            {"event_name": event_name, "customer": customer, "total": format(total, "f")}
            for (event_name, customer), total in sorted(totals.items())
        ]

    def _requests(self, body: Body) -> Json:
        operation = bodies.text(body, "operation") if "operation" in body else None
        return {"requests": _records(self._console.requests(operation)), "counts": self._console.request_counts()}


def _records(items: Sequence[_HasRecord]) -> list[Json]:
    return [item.record() for item in items]
