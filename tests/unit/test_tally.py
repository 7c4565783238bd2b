"""Counts, problems and exit codes: how many small outcomes become one."""

from decimal import Decimal

import pytest

from meterctl.actions.report import ReportResult
from meterctl.actions.tally import Tally, summed
from meterctl.errors import ExitCode
from meterctl.ports import KindCount


def test_the_total_leaves_out_what_remains() -> None:
    tally = Tally(event_name="m", reported=1, skipped=2, rejected=4, failed=8, expired=16, held=32, remaining=64)
    assert tally.total == 63
    assert list(tally.figures()) == [
        *("total", "reported", "duplicate", "late", "skipped", "rejected", "failed", "expired", "held", "remaining"),
        "units",
    ]


def test_meters_add_up_and_their_problems_merge() -> None:
    one, other = Tally(event_name="a", reported=1, units=Decimal("1.5")), Tally(event_name="b", reported=2)
    one.problem("x", ["1"])
    other.problem("x", ["2", "3"], count=2)
    total = summed([one, other])
    assert (total.reported, total.units, total.problems["x"].count) == (3, Decimal("1.5"), 3)
    assert total.problems["x"].sample_ids == ["1", "2", "3"]


def test_samples_are_few() -> None:
    tally = Tally(event_name="m")
    for number in range(100):
        tally.problem("x", [str(number)])
    assert (tally.problems["x"].count, tally.problems["x"].sample_ids) == (100, ["0", "1", "2", "3", "4"])


def test_collected_kinds_are_counted_where_they_belong() -> None:
    tally = Tally(event_name="m")
    for outcome, code in (("skipped", None), ("rejected", "local:value_missing"), ("expired", None), ("pending", None)):
        tally.collected(KindCount(outcome=outcome, code=code, event_count=3, units=Decimal(3)))
    assert (tally.skipped, tally.rejected, tally.expired, tally.reported) == (3, 3, 3, 0)
    assert set(tally.problems) == {"local:value_missing", "expired"}


def test_late_units_are_named() -> None:
    tally = Tally(event_name="m")
    tally.note_late(2, Decimal("7.50"))
    assert "7.5 units" in summed([tally]).problems["late"].hint


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([10, 0], 10),
        ([10, 11], 11),
        ([10, 65], 65),
        ([75, 65], 75),
        ([75, 69], 69),
        ([69, 77], 77),
        ([77, 78], 78),
        ([78, 1], 1),
        ([1, 130], 130),
        ([130, 143], 143),
    ],
)
def test_the_worst_code_wins(codes: list[int], worst: int) -> None:
    assert ReportResult(codes=[ExitCode(code) for code in codes]).exit_code == worst
