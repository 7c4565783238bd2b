"""One seed from its founding to its check."""

import psycopg

from simulation.company import Founder
from simulation.devices_company import DevicesCompany
from simulation.nights import Simulation
from simulation.rows_company import RowsCompany
from world import open_world

COMPANIES: dict[str, tuple[Founder, bool]] = {
    "rows": (RowsCompany, False),
    "devices": (DevicesCompany, False),
    "rows-validated": (RowsCompany, True),
    "devices-validated": (DevicesCompany, True),
}
"""Whose nights, and whether its Stripe drops events after the 200."""


def simulate(database_url: str, seed: int, *, company: str = "rows") -> None:
    """Live through one seed on a migrated database. Raises AssertionError with the seed and its steps."""
    with open_world(database_url) as world, psycopg.connect(database_url, autocommit=True) as plain:
        founder, validates = COMPANIES[company]
        simulation = Simulation(world=world, plain=plain, seed=seed, founder=founder, validates=validates)
        try:
            simulation.run()
            simulation.check()
        except Exception as error:
            steps = "\n  ".join(simulation.steps)
            raise AssertionError(f"seed {seed} of {company}: {type(error).__name__}: {error}\n  {steps}") from error
