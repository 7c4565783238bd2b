"""PgBouncer in transaction mode in front of a test's server, on a free port of loopback."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from cli.waiting import until
from meterctl.sandbox.postgres import EmbeddedPostgres

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

SERVER_CONNECTIONS = 4
"""For two runs at once, each of which has one connection for its lock and one for its work."""

CONFIG = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
logfile = {log}
pool_mode = {pool_mode}
default_pool_size = {pool_size}
query_wait_timeout = 2
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def pool(
    server: EmbeddedPostgres, directory: Path, *, pool_size: int = SERVER_CONNECTIONS, pool_mode: str = "transaction"
) -> Iterator[int]:
    """Run a PgBouncer in front of the server; give its port.

    It refuses to run as root. Then the server's account runs it, which the server's socket is open to.
    """
    port, log, config = free_port(), directory / "pgbouncer.log", directory / "pgbouncer.ini"
    (directory / "users.txt").write_text('"postgres" ""\n')
    info = psycopg.conninfo.conninfo_to_dict(server.conninfo())
    config.write_text(
        CONFIG.format(
            host=info["host"],
            port=info["port"],
            listen_port=port,
            users=directory / "users.txt",
            log=log,
            pool_size=pool_size,
            pool_mode=pool_mode,
        )
    )
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    assert PGBOUNCER is not None
    process = subprocess.Popen(
        [PGBOUNCER, "-q", config],
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # all of it is in the log, too
    )
    try:
        until(lambda: process.poll() is not None or accepts(port))
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)  # an immediate shutdown
        process.wait(timeout=30)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
