"""A fresh data directory, with the programs that can work on it."""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from meterctl.errors import UnavailableError
from meterctl.sandbox.postgres.account import DIRECTORY_PREFIX, ServerAccount, directory_parents
from meterctl.sandbox.postgres.binaries import PostgresBinaries, runnable, server_version
from meterctl.sandbox.postgres.guard import Guard

SUPERUSER = "postgres"

_LOG_LINES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What initdb made, and where."""

    directory: Path
    """Holds the data directory, the logs and the server's socket."""
    programs: PostgresBinaries
    """Those that the server's account can execute: as found, or a copy of them in `directory`."""
    version: str
    password: str = field(repr=False)
    """The superuser's, for TCP."""

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.directory / "data"

    @property
    def pid_file(self) -> Path:
        """Where the server tells whether it is ready."""
        return self.data / "postmaster.pid"

    @property
    def log(self) -> Path:
        """The server's log, of all its starts."""
        return self.directory / "server.log"


def create_cluster(guard: Guard, found: PostgresBinaries, account: ServerAccount | None) -> Cluster:
    """Create a directory owned by `account` (None: us) and a data directory in it, UTF8 and locale C.

    Raises ConfigurationError where no directory or no program suits, UnavailableError with initdb's own words.
    """
    created = guard.ask(
        "create",
        parents=[str(parent) for parent in directory_parents(account)],
        prefix=DIRECTORY_PREFIX,
        owner=[account.uid, account.gid] if account else None,
    )
    directory = Path(created["directory"])
    programs = runnable(found, account, directory / "programs")
    cluster = Cluster(
        directory=directory,
        programs=programs,
        version=server_version(programs, account),
        password=secrets.token_urlsafe(24),
    )
    _initialise(guard, cluster, account)
    return cluster


def last_lines(log: Path) -> str:
    """Return the end of a log, for an error message."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        return f"(no log: {error.strerror})"
    return "\n".join(lines[-_LOG_LINES_SHOWN:]) or "(it said nothing)"


def _initialise(guard: Guard, cluster: Cluster, account: ServerAccount | None) -> None:
    log = cluster.directory / "initdb.log"
    password_file = _write_password(cluster, account)
    outcome = guard.ask("run", argv=_initdb_command(cluster, password_file), log=str(log))
    password_file.unlink(missing_ok=True)
    if outcome["exit_status"] != 0:
        raise UnavailableError(
            f"initdb could not create a PostgreSQL data directory in {cluster.directory} "
            f"(exit status {outcome['exit_status']}); its last lines:\n{last_lines(log)}"
        )


def _initdb_command(cluster: Cluster, password_file: Path) -> list[str]:
    return [
        str(cluster.programs.initdb),
        f"--pgdata={cluster.data}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth-local=trust",  # the socket's directory is closed to all but us and the server
        "--auth-host=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--no-instructions",
    ]


def _write_password(cluster: Cluster, account: ServerAccount | None) -> Path:
    path = cluster.directory / "password"
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(cluster.password + "\n", encoding="ascii")
    if account is not None:
        os.chown(path, account.uid, account.gid)
    return path
