"""The ledger's schema: applied once however many start, and the same from the program as from its printed script."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import psycopg
import pytest

from meterctl.errors import ConfigurationError, NotPermittedError, UnavailableError
from meterctl.postgres import migrate as schema
from meterctl.postgres.connect import connect
from meterctl.postgres.migrate import migrate, migrations, require_schema, script
from roles import Roles, as_role, open_roles

TOGETHER = 4

DUMP = """
SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text, a.attidentity::text,
       coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'meterctl'::regnamespace
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated::text, '', ''
FROM pg_constraint WHERE connamespace = 'meterctl'::regnamespace
UNION ALL
SELECT 'index', tablename, indexname, indexdef, '', '', '' FROM pg_indexes WHERE schemaname = 'meterctl'
UNION ALL
SELECT 'migration', version::text, name, '', '', '', '' FROM meterctl.schema_migrations
ORDER BY 1, 2, 3
"""

EVERYTHING = [migration.name for migration in migrations()]


@pytest.fixture
def roles() -> Iterator[Roles]:
    with open_roles() as opened:
        yield opened


def dump(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(DUMP).fetchall()


def run_script(url: str) -> None:
    """As psql -1 would: the whole text at once."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("\n".join(script()))


def test_migrating_applies_all_migrations_and_then_nothing(empty_database_url: str) -> None:
    assert migrate(empty_database_url) == EVERYTHING
    assert migrate(empty_database_url) == []


def test_the_printed_script_gives_the_same_schema(empty_database_url: str, database_url: str) -> None:
    run_script(empty_database_url)
    assert dump(empty_database_url) == dump(database_url)
    assert len(dump(empty_database_url)) > 60


def test_the_printed_script_runs_statement_by_statement_and_again(empty_database_url: str, database_url: str) -> None:
    for _ in range(2):
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            for statement in script():
                connection.execute(statement)
    assert dump(empty_database_url) == dump(database_url)


def test_after_the_printed_script_there_is_nothing_to_migrate(empty_database_url: str) -> None:
    run_script(empty_database_url)
    assert migrate(empty_database_url) == []


@pytest.mark.parametrize("run", [migrate, run_script], ids=["program", "script"])
def test_several_at_once_on_an_empty_database_apply_each_migration_once(
    empty_database_url: str, database_url: str, run: Callable[[str], list[str]]
) -> None:
    """All start from a barrier; whoever comes second waits and finds the work done."""
    barrier = Barrier(TOGETHER)

    def start(_: int) -> list[str]:
        barrier.wait()
        return run(empty_database_url)

    with ThreadPoolExecutor(TOGETHER) as pool:
        results = list(pool.map(start, range(TOGETHER)))
    if run is migrate:
        assert sorted(name for applied in results for name in applied) == EVERYTHING
    assert dump(empty_database_url) == dump(database_url)


def test_without_create_on_the_database_the_grant_is_named(empty_database_url: str, roles: Roles) -> None:
    role = roles.create(empty_database_url)
    with pytest.raises(NotPermittedError, match="may not create a schema") as caught:
        migrate(as_role(empty_database_url, role))
    grant = str(caught.value.hint).partition("first: ")[2]
    assert grant.startswith("GRANT CREATE ON DATABASE ")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(grant)
    assert migrate(as_role(empty_database_url, role)) == EVERYTHING


def test_a_schema_made_by_a_dba_needs_no_right_on_the_database(empty_database_url: str, roles: Roles) -> None:
    """CREATE SCHEMA IF NOT EXISTS would ask for the right though the schema is there."""
    role = roles.create(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA meterctl AUTHORIZATION {role}")
    assert migrate(as_role(empty_database_url, role)) == EVERYTHING


def test_a_role_that_may_only_work_on_an_old_schema_is_sent_to_its_owner(database_url: str, roles: Roles) -> None:
    role = roles.create(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM meterctl.schema_migrations")
        connection.execute(f"GRANT USAGE ON SCHEMA meterctl TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA meterctl TO {role}")
    with pytest.raises(NotPermittedError, match="may not create tables in schema meterctl") as caught:
        migrate(as_role(database_url, role))
    assert "postgres" in str(caught.value.hint)


def test_a_migration_that_waits_too_long_says_so(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", timedelta(milliseconds=100))
    with psycopg.connect(empty_database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [schema.MIGRATION_LOCK])
        with pytest.raises(UnavailableError, match="locked"):
            migrate(empty_database_url)
    assert migrate(empty_database_url) == EVERYTHING


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as opened:
        yield opened


def test_a_schema_of_this_version_or_one_ahead_is_accepted(connection: psycopg.Connection) -> None:
    require_schema(connection)
    record(connection, migrations()[-1].version + 1)
    require_schema(connection)


def test_a_schema_two_ahead_is_refused(connection: psycopg.Connection) -> None:
    record(connection, migrations()[-1].version + 2)
    with pytest.raises(ConfigurationError, match=r"works up to") as caught:
        require_schema(connection)
    assert "upgrade meterctl" in str(caught.value.hint)


def test_a_schema_behind_is_refused_with_the_command(connection: psycopg.Connection) -> None:
    connection.execute("DELETE FROM meterctl.schema_migrations")
    with pytest.raises(ConfigurationError, match="no meterctl schema") as caught:
        require_schema(connection)
    assert "meterctl db migrate" in str(caught.value.hint)


def test_an_empty_database_is_refused_with_the_command(empty_database_url: str) -> None:
    with connect(empty_database_url) as opened, pytest.raises(ConfigurationError, match="no meterctl schema"):
        require_schema(opened)


def test_a_role_that_may_not_read_the_schema_is_told_the_grants(database_url: str, roles: Roles) -> None:
    role = roles.create(database_url)
    with connect(as_role(database_url, role)) as opened:
        with pytest.raises(NotPermittedError) as caught:
            require_schema(opened)
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute(str(caught.value.hint).partition(": ")[2])
        require_schema(opened)


def record(connection: psycopg.Connection, version: int) -> None:
    connection.execute("INSERT INTO meterctl.schema_migrations (version, name) VALUES (%s, 'later')", [version])
