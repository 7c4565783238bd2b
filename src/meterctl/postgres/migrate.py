"""The ledger's schema: numbered migrations, each applied in one transaction together with its own record.

A binary runs against the schema it knows or one version ahead of it (so that a migration can go first), never behind.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

import psycopg
from psycopg import sql

from meterctl.errors import ConfigurationError

MIGRATION_LOCK = 0x6D65746572  # "meter": any constant will do, it only has to be ours


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One numbered step: `text` is plain SQL without parameters."""

    version: int
    name: str
    text: LiteralString


@cache
def migrations() -> tuple[Migration, ...]:
    """Return every migration this binary knows, in order."""
    folder = files(__package__).joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(
        Migration(
            version=int(name[:4]),
            name=name.removesuffix(".sql"),
            text=cast("LiteralString", folder.joinpath(name).read_text(encoding="utf-8")),  # our own package's text
        )
        for name in names
    )


_RECORD: LiteralString = """\
CREATE SCHEMA IF NOT EXISTS meterctl;
CREATE TABLE IF NOT EXISTS meterctl.schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""


def script() -> Iterator[str]:
    """Yield what `db migrate` runs on an empty database, for a DBA to read and to run with psql."""
    yield _RECORD
    for migration in migrations():
        record = f"INSERT INTO meterctl.schema_migrations (version, name) VALUES ({migration.version}, '{migration.name}');"
        yield f"BEGIN;\n{migration.text}\n{record}\nCOMMIT;\n"


def migrate(conninfo: str) -> list[str]:
    """Bring the schema up to this binary's version. Return the names applied; safe when two start at once."""
    applied: list[str] = []
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while (name := _apply_next(connection)) is not None:
            applied.append(name)
    return applied


def _apply_next(connection: psycopg.Connection) -> str | None:
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '30s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        if _version(connection) is None:
            connection.execute(_RECORD)
        version = _version(connection) or 0
        pending = [m for m in migrations() if m.version > version]
        if not pending:
            return None
        connection.execute(pending[0].text)
        connection.execute(
            "INSERT INTO meterctl.schema_migrations (version, name) VALUES (%s, %s)",
            [pending[0].version, pending[0].name],
        )
    return pending[0].name


def _version(connection: psycopg.Connection) -> int | None:
    """Return the newest applied version, 0 for an empty record, None where there is no record at all."""
    row = connection.execute("SELECT to_regclass('meterctl.schema_migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    found = connection.execute(
        sql.SQL("SELECT coalesce(max(version), 0) FROM {}").format(sql.Identifier("meterctl", "schema_migrations"))
    ).fetchone()
    return int(found[0]) if found else 0


def require_schema(connection: psycopg.Connection) -> None:
    """Raise ConfigurationError unless the schema is this binary's or one version ahead."""
    known, found = migrations()[-1].version, _version(connection) or 0
    if found < known:
        state = "has no meterctl schema" if found == 0 else f"has schema version {found}, this meterctl needs {known}"
        raise ConfigurationError(f"the database {state}", hint="run `meterctl db migrate` as the schema's owner")
    if found > known + 1:
        raise ConfigurationError(
            f"the database has schema version {found}, this meterctl knows {known} and works up to {known + 1}",
            hint="upgrade meterctl on this host",
        )
