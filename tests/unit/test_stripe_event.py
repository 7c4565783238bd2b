"""Stripe's events as JSON: what is one, and what is said of a document that is none."""

from datetime import UTC, datetime
from typing import Any

import pytest

from meterctl.core.event_lines import read_lines
from meterctl.core.stripe_event import read_event
from meterctl.errors import InputError

SNAPSHOT: dict[str, Any] = {
    "id": "evt_1",
    "object": "event",
    "type": "invoice.paid",
    "created": 1_790_000_000,
    "livemode": False,
    "api_version": "2026-10-28.endive",
    "data": {"object": {}},
}
THIN: dict[str, Any] = {
    "id": "evt_2",
    "object": "v2.core.event",
    "type": "v1.billing.meter.no_meter_found",
    "created": "2026-11-21T02:00:00.123Z",
    "livemode": True,
    "context": "acct_1",
}


def test_a_snapshot_is_read() -> None:
    event = read_event(SNAPSHOT)
    assert event.created == datetime.fromtimestamp(1_790_000_000, UTC)
    assert (event.id, event.api_version, event.account, event.is_whole) == ("evt_1", "2026-10-28.endive", None, True)


def test_a_thin_event_is_read_and_is_whole_once_it_has_its_data() -> None:
    event = read_event(THIN)
    assert event.created == datetime(2026, 11, 21, 2, 0, 0, 123000, tzinfo=UTC)
    assert (event.account, event.is_thin, event.is_whole) == ("acct_1", True, False)
    assert read_event(THIN | {"data": {}}).is_whole


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ([], "no object"),
        ({"object": "list"}, "no object"),
        (SNAPSHOT | {"id": ""}, "no id"),
        (SNAPSHOT | {"type": 3}, "no type"),
        (SNAPSHOT | {"livemode": "false"}, "no livemode"),
        (SNAPSHOT | {"created": True}, "when it was created"),
        (SNAPSHOT | {"created": 10**30}, "when it was created"),
        (THIN | {"created": "2026-11-21T02:00:00"}, "when it was created"),
        (THIN | {"created": "yesterday"}, "when it was created"),
    ],
)
def test_what_is_no_event_is_said(document: object, what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_event(document)


def test_a_broken_line_costs_the_others_nothing() -> None:
    good = b'{"id": "e", "object": "event", "type": "t", "created": 1, "livemode": false}\n'
    lines = [good, b"\n", b"{\n", b"\xff\n", b"[" * 100_000, b"{}\n", good]
    found = [(line.number, line.event is not None) for line in read_lines(lines)]
    assert found == [(1, True), (3, False), (4, False), (5, False), (6, False), (7, True)]
