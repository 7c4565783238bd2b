"""A PostgreSQL server that lives exactly as long as its owner."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from meterctl.errors import UnavailableError
from meterctl.sandbox.postgres.account import server_account
from meterctl.sandbox.postgres.binaries import find_binaries
from meterctl.sandbox.postgres.cluster import SUPERUSER, Cluster, create_cluster, last_lines
from meterctl.sandbox.postgres.guard import Guard

LOOPBACK = "127.0.0.1"
SOCKET_PORT = 5432
"""Names the socket file when TCP is off. No port is opened, so it meets no other server's."""

READY_WITHIN_S = 60.0
"""A start takes 0.1-0.5 s; after a crash it first reads the log again. Far above both, for a loaded machine."""

_FREE_PORT_TRIES = 5

_SETTINGS = {
    "timezone": "UTC",
    "log_timezone": "UTC",
    "unix_socket_permissions": "0700",
    # Dynamic shared memory as files in the data directory: a killed server leaves nothing in /dev/shm, and containers
    # keep that small.
    "dynamic_shared_memory_type": "mmap",
}
_NOT_DURABLE = {
    # A crash of the machine may lose everything. A crash of the server (`kill`) loses no commit: each is still written,
    # though not flushed.
    "fsync": "off",
    "full_page_writes": "off",
}
_NOT_FOR_THE_SERVER = re.compile(r"PG|LC_|LANG|TZ$|PYTHON|STRIPE|METERCTL|DATABASE_URL")


class EmbeddedPostgres:
    """A private server in a temporary directory, reachable by its socket only, removed with all its data at the end.

    Use it as a context manager, or call `start` and `stop`. It ends with this process however that ends (SIGKILL
    included); a forked child neither keeps it alive nor may use this object. Superuser `postgres`, encoding UTF8,
    locale C, time zone UTC. The socket needs no password; its directory is open to us only (and, when we are root, to
    `nobody`, who then runs the server).

    `durable` keeps fsync on, `tcp` also listens on a free port of 127.0.0.1 with a random password, `settings` are
    server settings such as `{"max_connections": "20"}`, `environment` replaces os.environ. Takes about a second to
    start.
    """

    def __init__(
        self,
        *,
        durable: bool = False,
        tcp: bool = False,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._tcp = tcp
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._environment = dict(os.environ if environment is None else environment)
        self._guard: Guard | None = None
        self._cluster: Cluster | None = None
        self._port = SOCKET_PORT
        self._bin_directory = Path()

    def start(self) -> Self:
        """Create the data directory and start the server; return when it accepts connections.

        Raises ConfigurationError where this cannot work, UnavailableError where it failed this time.
        """
        if self._guard is not None:
            raise UnavailableError("the embedded PostgreSQL runs already", hint="restart() keeps its data")
        account = server_account()
        found = find_binaries(self._environment)
        self._bin_directory = found.directory
        self._guard = Guard(_server_environment(self._environment))
        try:
            self._cluster = create_cluster(self._guard, found, account)
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def conninfo(self, dbname: str = "postgres") -> str:
        """Return a URL for libpq that reaches the database by socket; fit for psycopg and as DATABASE_URL."""
        host = quote(str(self.directory), safe="")
        return f"postgresql://{SUPERUSER}@/{quote(dbname, safe='')}?host={host}&port={self._port}"

    def tcp_conninfo(self, dbname: str = "postgres") -> str:
        """Return the same by TCP, password included. Raises UnavailableError unless made with `tcp=True`."""
        if not self._tcp:
            raise UnavailableError("the embedded PostgreSQL does not listen on TCP", hint="EmbeddedPostgres(tcp=True)")
        address = f"{LOOPBACK}:{self._port}"
        return f"postgresql://{SUPERUSER}:{self._running.password}@{address}/{quote(dbname, safe='')}"

    @property
    def bin_directory(self) -> Path:
        """Where the server's programs were found; psql and pg_dump are there too if that installation has them."""
        return self._bin_directory

    @property
    def server_version(self) -> str:
        """The server's own version, such as `18.6`."""
        return self._running.version

    @property
    def directory(self) -> Path:
        """The directory that holds socket, data and logs until `stop`."""
        return self._running.directory

    def stop(self) -> None:
        """Stop the server and remove its directory. Does nothing when there is none, does not mind a dead server."""
        guard, self._guard, self._cluster = self._guard, None, None
        if guard is not None:
            guard.close()

    def restart(self) -> None:
        """Stop the server in order if it runs, and start it on the same data and address."""
        self._ask("stop")
        self._launch()

    def kill(self) -> None:
        """Kill every process of the server at once, as a crash would. `restart` lets it recover."""
        self._ask("kill")

    def _launch(self) -> None:
        """Start the server. A free port can be taken by somebody else before the server binds it: then try another."""
        for tries_left in reversed(range(_FREE_PORT_TRIES)):
            if self._tcp and self._port == SOCKET_PORT:
                self._port = _free_port()
            if self._is_up():
                return
            log = last_lines(self._running.log)
            if not (self._tcp and tries_left and "Address already in use" in log):
                raise UnavailableError(f"the embedded PostgreSQL did not start; its last lines:\n{log}")
            self._port = SOCKET_PORT

    def _is_up(self) -> bool:
        cluster = self._running
        outcome = self._ask(
            "start",
            argv=_server_command(cluster, self._addressed(self._settings)),
            log=str(cluster.log),
            pid_file=str(cluster.pid_file),
            timeout_s=READY_WITHIN_S,
        )
        return bool(outcome["ready"])

    def _addressed(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Add where the server listens. Not for `settings` to change: the URLs follow it."""
        return {
            **settings,
            "listen_addresses": LOOPBACK if self._tcp else "",
            "port": str(self._port),
            "unix_socket_directories": f'"{self.directory}"',
        }

    def _ask(self, do: str, **arguments: object) -> dict[str, object]:
        if self._guard is None:
            raise UnavailableError(f"the embedded PostgreSQL is not running (asked to {do})", hint="call start() first")
        return self._guard.ask(do, **arguments)

    @property
    def _running(self) -> Cluster:
        if self._cluster is None:
            raise UnavailableError("the embedded PostgreSQL is not running", hint="call start() first")
        return self._cluster


def _server_command(cluster: Cluster, settings: Mapping[str, str]) -> list[str]:
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [str(cluster.programs.postgres), "-D", str(cluster.data), *options]


def _server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment less what would change the server or its language, and less the secrets of our own."""
    return {name: value for name, value in environment.items() if not _NOT_FOR_THE_SERVER.match(name)} | {"LC_ALL": "C"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
