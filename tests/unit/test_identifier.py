"""Identifiers: templates, their length, their suffixes, and templates that could give the same text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterctl.core.identifier import Column, may_collide, next_identifier, parse_template, shortened


def test_a_template_is_literals_and_columns() -> None:
    assert parse_template("{a}-x{b}") == (Column("a"), "-x", Column("b"))


@pytest.mark.parametrize("text", ["", "constant", "{}", "{ }", "{a", "a}", "{a}{", "{{a}}"])
def test_a_malformed_template_says_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"column|brace"):
        parse_template(text)


@given(st.text(min_size=1, max_size=300))
def test_an_identifier_fits_and_stays_the_same(text: str) -> None:
    assert len(shortened(text)) <= 95
    assert shortened(text) == shortened(text)
    assert len(text) > 95 or shortened(text) == text


@given(st.text(min_size=96, max_size=200), st.text(min_size=96, max_size=200))
def test_long_identifiers_stay_distinct(one: str, other: str) -> None:
    assert (shortened(one) == shortened(other)) == (one == other)


def test_a_retried_identifier_counts_on_and_fits_in_100_characters() -> None:
    assert [next_identifier("x"), next_identifier("x~2"), next_identifier("x~9")] == ["x~2", "x~3", "x~10"]
    assert len(next_identifier("y" * 95 + "~9998")) == 100


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("{a}-{b}-{c}", "{x}-{y}-{z}", True),
        ("{a}-{b}-{c}", "readings-{id}", False),
        ("{a}-{b}", "readings-{id}", True),
        ("m-{id}", "n-{id}", False),
        ("{id}", "m{id}", True),
        ("a-{id}", "a-{id}", True),
    ],
)
def test_templates_that_may_collide(one: str, other: str, collide: bool) -> None:  # noqa: FBT001 -- a table
    a, b = parse_template(one), parse_template(other)
    assert may_collide(a, b) is collide
    assert may_collide(b, a) is collide
