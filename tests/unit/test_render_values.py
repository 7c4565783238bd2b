"""How values and tables are written: the same everywhere, exact, and on one line."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from meterctl.render.tables import table
from meterctl.render.values import iso, jsonable, printable, shown, span


def test_instants_are_utc_with_z() -> None:
    there = timezone(timedelta(hours=5, minutes=30))
    assert iso(datetime(2026, 11, 21, 7, 30, tzinfo=there)) == "2026-11-21T02:00:00Z"
    assert iso(None) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.000000000001"), "0.000000000001"),
        (Decimal("2.50"), "2.5"),
        (datetime(2026, 11, 21, tzinfo=UTC), "2026-11-21T00:00:00Z"),
        (7, "7"),
        (True, "True"),
    ],
)
def test_values_are_shown_exactly(value: object, text: str) -> None:
    assert shown(value) == text


def test_json_holds_quantities_and_instants_as_strings_and_the_rest_as_it_is() -> None:
    assert jsonable(Decimal("1E+3")) == "1000"
    assert jsonable(datetime(2026, 11, 21, tzinfo=UTC)) == "2026-11-21T00:00:00Z"
    assert (jsonable(None), jsonable(3), jsonable({"value": "1"})) == (None, 3, {"value": "1"})


def test_text_of_the_application_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[31mb\nc\u202e") == r"a\x1b[31mb\nc\u202e"
    assert printable("Zoë 東京") == "Zoë 東京"


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(seconds=119), "119s"),
        (timedelta(minutes=2), "2m"),
        (timedelta(hours=5, minutes=59), "5h"),
        (timedelta(days=3), "3d"),
    ],
)
def test_spans_are_in_their_largest_fitting_unit(length: timedelta, text: str) -> None:
    assert span(length) == text


def test_a_plain_table_is_aligned_with_numbers_to_the_right() -> None:
    text = table(["name", "units"], [["a", "5"], ["long", "1000"], ["none", "-"]], console=False)
    assert text.splitlines() == ["name  units", "a         5", "long   1000", "none      -"]


def test_a_table_without_rows_is_its_head() -> None:
    assert table(["a", "b"], [], console=False) == "a  b"


def test_markup_in_a_cell_is_text_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "[bold]x[/bold]" in table(["name"], [["[bold]x[/bold]"]], console=True)


def test_a_narrow_terminal_folds_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = table(["identifier", "n"], [["abcdefghijklmnopqrstuvwxyz", "12"]], console=True)
    assert max(map(len, text.splitlines())) <= 20
    letters = "".join(line.split("12")[0].strip() for line in text.splitlines()[1:])
    assert letters.replace(" ", "") == "abcdefghijklmnopqrstuvwxyz"
