"""The checker can fail: each planted defect is found, here by the first seed that was seen to find it."""

import pytest

from simulation.planted import DEFECTS, planted
from simulation.seeds import simulate

BILLED_WRONG = "billed .*, the ledger says|no shortfall|Stripe has what nobody sent"

FOUND_BY = {
    "safe-window-ignored": (16, BILLED_WRONG),
    "claim-not-committed": (71, BILLED_WRONG),
    "stamp-before-answer": (3, "stamped, not billed"),
    "already-exists-is-an-error": (18, BILLED_WRONG),
    "throttling-clears-a-doubt": (18, BILLED_WRONG),
    "key-kept-after-an-answer": (39, "leaves no young doubt"),
    "one-read-believed": (0, "one_read_decides_nothing"),
    "levels-in-any-order": (7, "arrived in the order"),
    "recovery-doubts-nothing": (13, BILLED_WRONG),
    "report-is-a-verdict": (0, BILLED_WRONG),
    "reported-is-due-again": (0, "found rejected, and billed under the same identifier"),
    "report-ignores-sending": (28, "reports that nobody decided|a report named it"),
    "reported-doubt-has-an-age": (0, "reports that nobody decided|a report named it"),
    "explained-report-stays-open": (4, "reports that nobody decided"),
    "marked-before-the-effect": (3, "reports that nobody acted on"),
}

COMPANY = {"levels-in-any-order": "devices"} | dict.fromkeys(
    (
        "report-is-a-verdict",
        "reported-is-due-again",
        "report-ignores-sending",
        "reported-doubt-has-an-age",
        "explained-report-stays-open",
        "marked-before-the-effect",
    ),
    "rows-validated",
)
"""Whose nights find it, where those of the rows do not."""


def test_every_defect_has_its_seed() -> None:
    assert set(FOUND_BY) == set(DEFECTS)


@pytest.mark.parametrize("defect", FOUND_BY)
def test_a_planted_defect_is_found(database_url: str, defect: str) -> None:
    seed, how = FOUND_BY[defect]
    company = COMPANY.get(defect, "rows")
    with planted(defect), pytest.raises(AssertionError, match=how):
        simulate(database_url, seed, company=company)
