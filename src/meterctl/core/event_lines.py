"""A file of Stripe's events, one JSON document on each line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meterctl.core.stripe_event import StripeEvent, read_event
from meterctl.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class EventLine:
    """One line, counted from 1: an event, or what is wrong with it."""

    number: int
    event: StripeEvent | None = None
    fault: str | None = None


def read_lines(lines: Iterable[bytes]) -> Iterator[EventLine]:
    """Yield each line that is not blank; one that is broken costs the others nothing."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield EventLine(number=number, event=read_event(json.loads(line.decode())))
        except InputError as error:
            yield EventLine(number=number, fault=error.message)
        except (ValueError, RecursionError):
            yield EventLine(number=number, fault="this is no JSON in UTF-8")
