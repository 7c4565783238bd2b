"""The redactor: every form of a known secret, and every shape of an unknown one."""

import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterctl.redaction import MASK, Redactor


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key sk_test_example.", "key ***."),
        ("rk_live_x and sk_live_y", "*** and ***"),
        ("Invalid API Key provided: sk_test_****abcd", "Invalid API Key provided: ***"),
        ("whsec_example+/=x", "***"),
        (
            "must begin with sk_test_ or rk_test_; see task_test_x",
            "must begin with sk_test_ or rk_test_; see task_test_x",
        ),
        ("postgresql://u:hunter2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hun@ter/2@h/d", "postgresql://u:***@h/d"),
        ("to http://127.0.0.1:8080/x", "to http://127.0.0.1:8080/x"),
        ("host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"),
        ("password = 'hunter 2' dbname=d", "password = *** dbname=d"),
        ("?sslpassword=hunter2&x=y", "?sslpassword=***&x=y"),
        ("nothing at all: 5 € of ümlaut", "nothing at all: 5 € of ümlaut"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert Redactor().text(text) == masked
    assert Redactor().text(masked) == masked


def test_short_secrets_are_masked_as_whole_words_only() -> None:
    redactor = Redactor(["postgres", "a"])
    assert redactor.text("user postgres of postgresql: a cat") == "user *** of postgresql: *** cat"


def test_the_longest_secret_wins_and_empty_ones_mask_nothing() -> None:
    assert Redactor(["", " ", "hunter2-long", "hunter2-long-tail"]).text("x hunter2-long-tail y") == "x *** y"


def test_the_redactor_never_shows_what_it_masks() -> None:
    assert repr(Redactor(["hunter2"])) == "Redactor()"


def test_values_keep_their_types_and_nesting_is_bounded() -> None:
    circle: list[object] = [1]
    circle.append(circle)
    assert Redactor().value({"n": 1, "f": 1.5, "inf": float("inf"), 3: {"x"}}) == {
        "n": 1,
        "f": 1.5,
        "inf": "inf",
        "3": ["x"],
    }
    assert json.dumps(Redactor().value(circle))


@given(st.text(min_size=9, max_size=30).filter(lambda text: text == text.strip() and MASK not in text))
def test_a_secret_is_masked_in_every_form_it_may_take(secret: str) -> None:
    redactor = Redactor([secret])
    for form in (
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret),
    ):
        assert redactor.text(f"<{form}>").replace("'", "").replace('"', "") == "<***>"
