"""What the nights need of a company: its usage, what happens to it, and what must hold of it in the end."""

import random
from collections.abc import Callable
from typing import Protocol

from world import World


class Company(Protocol):
    """`names` are its customers' (Stripe knows them as cus_NAME), `meters` its meters by key and event_name."""

    names: list[str]
    meters: tuple[str, ...]

    def found(self) -> dict[str, object]:
        """Customers and their first usage; returns what its Stripe is like."""
        ...

    def use(self, *, max_ago_min: int) -> None:
        """Some usage of the last minutes."""
        ...

    def something_happens(self) -> None:
        """Or nothing."""
        ...

    def is_due(self) -> bool:
        """Whether another run has something to do, though no event is open."""
        ...

    def check(self) -> None:
        """Raise AssertionError unless everything is billed once and accounted for."""
        ...


Founder = Callable[[World, random.Random, Callable[[str], None]], Company]
