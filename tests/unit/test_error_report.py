"""Error reports as Stripe publishes them, in their newer and older shapes, and with parts missing."""

from datetime import UTC, datetime
from typing import Any

import pytest

from meterctl.core.error_report import ErrorReport, read_report
from meterctl.core.stripe_event import read_event
from meterctl.errors import InputError

CREATED = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


def report(data: object, **more: Any) -> ErrorReport:
    document = {
        "id": "evt_1",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-11-21T02:00:00Z",
        "livemode": False,
        "data": data,
    }
    return read_report(read_event(document | more))


def reason(*requests: object, count: object = 1) -> dict[str, Any]:
    samples = [{"error_message": "No.", "request": request} for request in requests]
    types = [{"code": "meter_event_invalid_value", "error_count": count, "sample_errors": samples}]
    return {"reason": {"error_count": count, "error_types": types}}


def test_a_report_names_its_meter_its_window_and_its_samples() -> None:
    found = report(
        reason({"identifier": "a-1"}, count=3)
        | {"validation_start": "2026-11-21T01:59:50.000Z", "validation_end": "2026-11-21T02:00:00.000Z"},
        related_object={"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    )
    assert (found.meter_id, found.error_count, found.unnamed_count) == ("mtr_1", 3, 2)
    assert found.validation_start == datetime(2026, 11, 21, 1, 59, 50, tzinfo=UTC)
    assert found.validation_end == CREATED
    assert [(one.named, one.code, one.message) for one in found.samples] == [
        ("a-1", "meter_event_invalid_value", "No.")
    ]


@pytest.mark.parametrize("request_", [{"idempotency_key": "a-1:0"}, {"id": "a-1:0"}, {"identifier": "a-1:0"}])
def test_a_request_is_named_by_any_of_three(request_: dict[str, str]) -> None:
    assert report(reason(request_)).samples[0].named == "a-1:0"


@pytest.mark.parametrize(
    ("named", "identifiers"),
    [
        ("a-1", ("a-1",)),
        ("a-1:0", ("a-1:0", "a-1")),
        ("a-1:1003", ("a-1:1003", "a-1")),
        ("a:b:2", ("a:b:2", "a:b")),
        (":0", (":0",)),
        ("a-1:x", ("a-1:x",)),
    ],
)
def test_a_name_is_an_identifier_or_the_key_of_an_attempt(named: str, identifiers: tuple[str, ...]) -> None:
    assert report(reason({"identifier": named})).samples[0].identifiers == identifiers


def test_what_looks_like_a_hash_may_be_one() -> None:
    plain, hashed = report(reason({"identifier": "a-1"}, {"identifier": "0f" * 32})).samples
    assert (plain.may_be_hashed, hashed.may_be_hashed) == (False, True)


def test_an_error_without_a_request_counts_and_names_nothing() -> None:
    found = report(reason(None, {}, {"identifier": 7}, count=3))
    assert [one.named for one in found.samples] == ["", "", ""]


def test_a_count_that_is_missing_or_too_small_is_that_of_the_samples() -> None:
    assert [report(reason({}, {}, count=count)).error_count for count in (None, 1, "9", True)] == [2, 2, 2, 2]


@pytest.mark.parametrize("end", ["2026-11-21T02:00:00", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"])
def test_a_window_that_cannot_be_read_is_the_instant_of_the_report(end: str) -> None:
    found = report(reason({}) | {"validation_start": "soon", "validation_end": end})
    assert (found.validation_start, found.validation_end) == (CREATED, CREATED)


@pytest.mark.parametrize(("data", "what"), [(None, "no data"), ([], "no data"), ({}, "no data.reason")])
def test_what_is_no_report_is_said(data: object, what: str) -> None:
    with pytest.raises(InputError, match=what):
        report(data)
