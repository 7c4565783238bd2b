"""Roles without rights, for tests of what PostgreSQL refuses. Roles belong to the server, so each is dropped again."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

_numbers = itertools.count(1)


@dataclass(slots=True)
class Roles:
    """Creates roles; drops them, with what they own and may do, when the test ends."""

    created: list[tuple[str, str]] = field(default_factory=list)

    def create(self, url: str) -> str:
        """Create a role that may log in and nothing else, for use in this database; return its name."""
        name = f"job_{next(_numbers)}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN")
        self.created.append((url, name))
        return name

    def drop_all(self) -> None:
        """Drop them."""
        for url, name in self.created:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def as_role(url: str, role: str) -> str:
    """Return the URL of the same database for another role."""
    return url.replace("postgres@", f"{role}@", 1)


@contextmanager
def open_roles() -> Iterator[Roles]:
    """Give what makes roles; open it after the databases they are made in, so that it ends before they are gone."""
    made = Roles()
    try:
        yield made
    finally:
        made.drop_all()
