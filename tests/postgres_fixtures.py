"""One PostgreSQL server a session, one migrated template, one clone of it a test.

Cloning takes about 20 ms in memory (100 ms on some disks), so tests share no state. Without a server these tests skip
and say why; with METERCTL_TESTS_REQUIRE_POSTGRES set (as .ci/run does) they fail instead, so that a green run has run
them.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from meterctl.errors import ConfigurationError, UnavailableError
from meterctl.sandbox.postgres import EmbeddedPostgres

SHIPPED_TABLES = Path(__file__).parent.parent / "src" / "meterctl" / "sandbox" / "sql" / "shipped_tables.sql"
TEMPLATE = "meterctl_template"
STRATEGY_SINCE = 150000
"""PostgreSQL 15 brought STRATEGY and a new default, slower here; 14 copies files without being told."""

MEMORY = "/dev/shm"  # noqa: S108 -- mkdtemp makes a private directory there
MEMORY_BYTES_MIN = 2 * 1024**3

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def pg_server() -> Iterator[EmbeddedPostgres]:
    """A running server, not durable. Do not stop or restart it: it is everybody's."""
    server = EmbeddedPostgres()
    try:
        with in_memory():
            server.start()
    except (ConfigurationError, UnavailableError) as error:
        reason = f"no PostgreSQL server: {error} ({error.hint})"
        if os.environ.get("METERCTL_TESTS_REQUIRE_POSTGRES"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def template_database(pg_server: EmbeddedPostgres) -> str:
    """The name of a database with our schema, migrated, and the shipped application tables. Only for cloning."""
    return make_template(pg_server)


def make_template(server: EmbeddedPostgres) -> str:
    """Make that database on a server; return its name."""
    from meterctl.postgres.migrate import migrate  # noqa: PLC0415 -- tests without a database need not import it

    _administer(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    url = server.conninfo(TEMPLATE)
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute(SHIPPED_TABLES.read_bytes())
    return TEMPLATE


@pytest.fixture
def database_url(pg_server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """The URL of this test's own copy of the template, usable as DATABASE_URL."""
    with clone(pg_server, template_database) as url:
        yield url


@pytest.fixture
def empty_database_url(pg_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of this test's own database without any table of ours."""
    with clone(pg_server, "template0") as url:
        yield url


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory that the server's account can enter, unlike pytest's own, with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for _ in range(100):  # after a failure, a watchdog may be removing things there as well
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """Make what the block makes of temporary directories in memory, where there is room for it."""
    try:
        memory = os.statvfs(MEMORY)
    except OSError:
        memory = None
    room = memory is not None and not memory.f_flag & os.ST_NOEXEC and memory.f_bavail * memory.f_frsize
    before = tempfile.tempdir
    if room and room >= MEMORY_BYTES_MIN and "TMPDIR" not in os.environ:
        tempfile.tempdir = MEMORY
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def clone(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Give the URL of a database cloned for the block."""
    name = f"test_{next(_numbers)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    _administer(server, create, strategy=sql.SQL(" STRATEGY FILE_COPY"))
    try:
        yield server.conninfo(name)
    finally:
        _administer(server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _administer(server: EmbeddedPostgres, statement: sql.Composed, *, strategy: sql.SQL | None = None) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        if strategy is not None and connection.info.server_version >= STRATEGY_SINCE:
            statement += strategy
        connection.execute(statement)
