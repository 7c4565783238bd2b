"""Who runs the server, and where it may keep its files."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from meterctl.errors import ConfigurationError

SERVER_ACCOUNT = "nobody"
"""Runs the server when we are root, as PostgreSQL refuses to: the one account that every system has."""

SOCKET_PATH_BYTES_MAX = 103
"""Longest path of a Unix socket that both Linux (107) and macOS (103) accept, without its closing zero byte."""

DIRECTORY_PREFIX = "meterctl-pg-"
_LONGEST_BELOW_PARENT = f"/{DIRECTORY_PREFIX}12345678/.s.PGSQL.65535"


@dataclass(frozen=True, kw_only=True)
class ServerAccount:
    """An account of this system other than ours."""

    name: str
    uid: int
    gid: int


def server_account() -> ServerAccount | None:
    """Return the account that must run the server when we are root; None when we can run it ourselves.

    Raises ConfigurationError where a server cannot be run at all.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "the embedded PostgreSQL does not run on Windows",
            hint="use Linux (WSL is enough) or macOS, or a server of your own by DATABASE_URL",
        )
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 -- this module does not exist on Windows, and only root needs it

    try:
        entry = pwd.getpwnam(SERVER_ACCOUNT)
    except KeyError as error:
        raise ConfigurationError(
            f"we are root, PostgreSQL refuses to run as root, and there is no account {SERVER_ACCOUNT!r} to run it",
            hint=f"run as an ordinary user, or create the account {SERVER_ACCOUNT!r}",
        ) from error
    return ServerAccount(name=SERVER_ACCOUNT, uid=entry.pw_uid, gid=entry.pw_gid)


def directory_parents(account: ServerAccount | None) -> list[Path]:
    """Return the temporary directories, best first, in which a socket's path is short enough and `account` can enter.

    Raises ConfigurationError where there is none.
    """
    candidates = [Path(tempfile.gettempdir()).absolute(), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 -- mkdtemp follows
    usable = [path for path in dict.fromkeys(candidates) if _is_short(path) and _is_open_to(account, path)]
    if usable:
        return usable
    raise ConfigurationError(
        f"no temporary directory suits a PostgreSQL server{f' run by {account.name}' if account else ''}: "
        f"tried {', '.join(map(str, candidates))}",
        hint=f"set TMPDIR to a directory with a path below {SOCKET_PATH_BYTES_MAX - len(_LONGEST_BELOW_PARENT)} bytes "
        "that every user can enter",
    )


def _is_short(parent: Path) -> bool:
    return len(os.fsencode(parent)) + len(_LONGEST_BELOW_PARENT) <= SOCKET_PATH_BYTES_MAX


def _is_open_to(account: ServerAccount | None, path: Path) -> bool:
    """Tell whether we can write there, and `account`, a stranger to the directory's owner and group, can enter."""
    if not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        return False
    everyone_may_enter = 0o001
    resolved = path.resolve()
    return account is None or all(step.stat().st_mode & everyone_may_enter for step in (resolved, *resolved.parents))
