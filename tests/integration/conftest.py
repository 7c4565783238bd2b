"""The world fixture: see `world.py`."""

from collections.abc import Iterator

import pytest

from world import World, open_world


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """A company whose clock stands at 2026-11-21 02:00 UTC."""
    with open_world(database_url) as opened:
        yield opened
