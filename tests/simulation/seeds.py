"""One seed from its founding to its check."""

import psycopg

from simulation.nights import Simulation, check
from world import open_world


def simulate(database_url: str, seed: int) -> None:
    """Live through one seed on a migrated database. Raises AssertionError with the seed and its steps."""
    with open_world(database_url) as world, psycopg.connect(database_url, autocommit=True) as plain:
        simulation = Simulation(world=world, plain=plain, seed=seed)
        try:
            simulation.run()
            check(world)
        except Exception as error:
            steps = "\n  ".join(simulation.steps)
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n  {steps}") from error
