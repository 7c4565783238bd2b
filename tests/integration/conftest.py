"""A world for each test, and one user in it who pays: see `world.py`."""

from collections.abc import Iterator

import pytest

from world import World, open_world


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """A company whose clock stands at 2026-11-21 02:00 UTC."""
    with open_world(database_url) as opened:
        yield opened


@pytest.fixture
def ada(world: World) -> World:
    world.customer("ada")
    return world


@pytest.fixture
def new_ada(world: World) -> World:
    """Stripe does not know her yet."""
    world.customer("ada", known=False)
    return world
