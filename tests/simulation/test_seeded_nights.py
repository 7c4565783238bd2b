"""Seeded nights: after the faults stop, every unit is billed once. A failure prints its seed and its steps."""

import pytest

from simulation.seeds import COMPANIES, simulate

SEEDS = range(18)
"""Of each company."""


@pytest.mark.parametrize("company", COMPANIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_after_the_faults_stop_every_unit_is_billed_once(database_url: str, seed: int, company: str) -> None:
    simulate(database_url, seed, company=company)
