"""The checker can fail: each planted defect is found, here by the first seed that was seen to find it."""

import pytest

from simulation.planted import DEFECTS, planted
from simulation.seeds import simulate

FOUND_BY = {
    "safe-window-ignored": (16, "billed .*, the ledger says"),
    "claim-not-committed": (71, "billed .*, the ledger says"),
    "stamp-before-answer": (3, "stamped, not billed"),
    "already-exists-is-an-error": (18, "billed .*, the ledger says"),
    "throttling-clears-a-doubt": (18, "billed .*, the ledger says"),
    "key-kept-after-an-answer": (39, "leaves no young doubt"),
    "one-read-believed": (0, "one_read_decides_nothing"),
    "levels-in-any-order": (7, "arrived in the order"),
    "recovery-doubts-nothing": (13, "billed .*, the ledger says"),
}


def test_every_defect_has_its_seed() -> None:
    assert set(FOUND_BY) == set(DEFECTS)


@pytest.mark.parametrize("defect", FOUND_BY)
def test_a_planted_defect_is_found(database_url: str, defect: str) -> None:
    seed, how = FOUND_BY[defect]
    company = "devices" if "levels" in defect else "rows"
    with planted(defect), pytest.raises(AssertionError, match=how):
        simulate(database_url, seed, company=company)
