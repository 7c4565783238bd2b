"""The ledger's schema: numbered migrations, each applied in one transaction together with its own record.

A binary runs against the schema it knows or one version ahead of it (so that a migration can go first), never behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import LiteralString

import psycopg
from psycopg import errors as pg

from meterctl.errors import ConfigurationError, NotPermittedError, UnavailableError
from meterctl.postgres.catalog import current_role, fetch
from meterctl.postgres.connect import connect, transaction
from meterctl.postgres.queries import query

MIGRATION_LOCK = 0x6D65746572  # "meter": any constant will do, it only has to be ours

LOCK_TIMEOUT = timedelta(seconds=30)
"""How long a migration waits for another one, and for runs that use the tables it changes."""


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
            text=folder.joinpath(name).read_text(encoding="utf-8"),  # our own package's text
        )
        for name in names
    )


_CREATE_SCHEMA: LiteralString = "CREATE SCHEMA IF NOT EXISTS meterctl;\n"
_CREATE_RECORD: LiteralString = """\
CREATE TABLE IF NOT EXISTS meterctl.schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""


def script() -> Iterator[str]:
    """Yield what `db migrate` does on an empty database, for a DBA to read and to run with psql.

    Each statement is atomic by itself, and does nothing where it has been done: the script may be run again, and at the
    same time as another one or as `db migrate`.
    """
    yield "-- meterctl's schema. Run as the role that is to own it; running it again does nothing.\n"
    yield _step(f"{_CREATE_SCHEMA}{_CREATE_RECORD}")
    for migration in migrations():
        yield _step(_unless_recorded(migration))


def _step(body: str) -> str:
    """Return a DO block, which waits its turn: CREATE … IF NOT EXISTS alone fails when two run at once."""
    return f"DO $step$\nBEGIN\nPERFORM pg_advisory_xact_lock({MIGRATION_LOCK});\n{body}END;\n$step$;\n"


def _unless_recorded(migration: Migration) -> str:
    return (
        f"IF EXISTS (SELECT FROM meterctl.schema_migrations WHERE version = {migration.version}) THEN\n    RETURN;\n"
        f"END IF;\nEXECUTE $migration$\n{migration.text}$migration$;\n"
        f"INSERT INTO meterctl.schema_migrations (version, name) VALUES ({migration.version}, '{migration.name}');\n"
    )


def migrate(conninfo: str) -> list[str]:
    """Bring the schema up to this binary's version. Return the names applied; safe when several start at once.

    Raises NotPermittedError naming the GRANT, UnavailableError when another session keeps what it needs locked.
    """
    applied: list[str] = []
    with connect(conninfo) as connection:
        while (name := _apply_next(connection)) is not None:
            applied.append(name)
    return applied


def _apply_next(connection: psycopg.Connection) -> str | None:
    with transaction(connection, lock_timeout=LOCK_TIMEOUT), _waiting_no_longer():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        version = _recorded_version(connection)
        pending = [m for m in migrations() if m.version > version]
        if not pending:
            return None
        connection.execute(pending[0].text)
        connection.execute(
            "INSERT INTO meterctl.schema_migrations (version, name) VALUES (%s, %s)",
            [pending[0].version, pending[0].name],
        )
    return pending[0].name


@contextmanager
def _waiting_no_longer() -> Iterator[None]:
    try:
        yield
    except pg.LockNotAvailable as error:
        raise UnavailableError(
            f"another session kept what the migration needs locked for {LOCK_TIMEOUT.total_seconds():.0f} s",
            hint="nothing was changed; run `meterctl db migrate` again when no migration and no long query is running",
        ) from error


def _recorded_version(connection: psycopg.Connection) -> int:
    """Return the newest applied version, making schema and record first where they are missing."""
    found = fetch(connection, query("catalog", "schema_record"))
    if not found:
        _require_create_on_database(connection)
        connection.execute(_CREATE_SCHEMA + _CREATE_RECORD)
        return 0
    schema = found[0]
    version = _version(connection) if schema["usable"] and schema["readable"] else 0
    if version < migrations()[-1].version and not (schema["usable"] and schema["may_create"]):
        role = current_role(connection)
        raise NotPermittedError(
            f"role {role} may not create tables in schema meterctl",
            hint=f"run as its owner, {schema['owner']}, or first: GRANT USAGE, CREATE ON SCHEMA meterctl TO {role};",
        )
    if not schema["recorded"]:
        connection.execute(_CREATE_RECORD)
    return version


def _require_create_on_database(connection: psycopg.Connection) -> None:
    may = fetch(connection, query("catalog", "may_create_schema"))[0]
    if not may["allowed"]:
        raise NotPermittedError(
            f"role {may['role']} may not create a schema in database {may['database']}",
            hint=f"run as another role, or first: GRANT CREATE ON DATABASE {may['database']} TO {may['role']};",
        )


def _version(connection: psycopg.Connection) -> int:
    row = connection.execute(query("catalog", "schema_version")).fetchone()
    return int(row[0]) if row else 0


def schema_problem(connection: psycopg.Connection) -> ConfigurationError | NotPermittedError | None:
    """Return why this binary cannot work on the schema, None if it can: it is this binary's or one version ahead."""
    with transaction(connection, read_only=True):
        found = fetch(connection, query("catalog", "schema_record"))
        if found and found[0]["recorded"] and not (found[0]["usable"] and found[0]["readable"]):
            role = current_role(connection)
            return NotPermittedError(
                f"role {role} may not read the schema meterctl",
                hint=f"run as {found[0]['owner']}: {' '.join(ledger_grants(role))}",
            )
        version = _version(connection) if found and found[0]["recorded"] else 0
    return _version_problem(version, migrations()[-1].version)


def _version_problem(found: int, known: int) -> ConfigurationError | None:
    if found < known:
        state = "has no meterctl schema" if found == 0 else f"has schema version {found}, this meterctl needs {known}"
        return ConfigurationError(f"the database {state}", hint="run `meterctl db migrate` as the schema's owner")
    if found > known + 1:
        return ConfigurationError(
            f"the database has schema version {found}, this meterctl knows {known} and works up to {known + 1}",
            hint="upgrade meterctl on this host",
        )
    return None


def require_schema(connection: psycopg.Connection) -> None:
    """Raise ConfigurationError unless the schema is this binary's or one version ahead, NotPermittedError if unread."""
    problem = schema_problem(connection)
    if problem is not None:
        raise problem


def ledger_grants(role: str) -> tuple[str, ...]:
    """Return what gives a role all that a run needs on the ledger; `role` is quoted for SQL."""
    return (
        f"GRANT USAGE ON SCHEMA meterctl TO {role};",
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA meterctl TO {role};",
        f"GRANT DELETE ON meterctl.usage_outbox, meterctl.usage_keys TO {role};",
    )
