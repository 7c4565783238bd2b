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


def deep(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def test_what_jsonb_cannot_hold_is_left_out_of_texts() -> None:
    event = read_event(SNAPSHOT | {"data": {"a\0": ["x\ud800y", ("z\0",)]}})
    assert event.payload["data"] == {"a": ["x?y", ["z"]]}


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
        (THIN | {"created": "0001-01-01T00:00:00+23:00"}, "when it was created"),
        (THIN | {"created": "9999-12-31T23:59:59-23:00"}, "when it was created"),
        (SNAPSHOT | {"created": -1}, "when it was created"),
        (SNAPSHOT | {"created": 1.5}, "when it was created"),
        (SNAPSHOT | {"id": "evt_1 "}, "its id is none"),
        (SNAPSHOT | {"id": "evt_\0"}, "its id is none"),
        (SNAPSHOT | {"type": "e" * 256}, "its type is none"),
        (SNAPSHOT | {"account": "acct_1\0"}, "its account is none"),
        (SNAPSHOT | {"data": {"x": float("inf")}}, "cannot be stored"),
        (SNAPSHOT | {"data": 10**5000}, "cannot be stored"),
        (SNAPSHOT | {"data": deep(5000)}, "cannot be stored"),
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
