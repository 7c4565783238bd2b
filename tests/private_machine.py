"""A machine of a test's own: private mounts and processes on this one, with meterctl installed and a sandbox to use.

Nothing outside changes: /etc is a copy, /opt, /run and the temporary directories are empty at first, and all of it,
processes too, is gone with the one process that the test stops. Only root can make such a machine, and only on Linux.
"""

import contextlib
import os
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deployment import UNITS
from meterctl.postgres.migrate import migrate
from meterctl.sandbox.local_stripe import LocalStripe
from meterctl.sandbox.postgres import EmbeddedPostgres

SOURCES = Path(__file__).parent.parent / "src"
SHIPPED_TABLES = SOURCES / "meterctl" / "sandbox" / "sql" / "shipped_tables.sql"

ISOLATION = ("--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--ipc", "--uts")

SET_UP = """
set -eu
# Private copies. The mounts under $PLACE are made before /opt is covered: Python may be installed there.
mount -t tmpfs -o mode=755 tmpfs "$PLACE"
cp -a /etc "$PLACE/etc"
mkdir -p "$PLACE/opt/meterctl"
cd "$PLACE/opt/meterctl"
mkdir bin python site-packages src record
mount --bind "$PYTHON" python
mount --bind "$SITE_PACKAGES" site-packages
mount --bind "$SOURCES" src
mount --bind "$RECORD" record
cp "$WRAPPER" bin/meterctl
chmod 755 bin/meterctl
cd /
mount --rbind "$PLACE/opt" /opt
mount --bind "$PLACE/etc" /etc
mount -t tmpfs -o mode=755 tmpfs /run
for shared in /tmp /var/tmp /dev/shm; do
    mount -t tmpfs -o mode=1777 tmpfs "$shared"
done
# The account and the secrets, as deploy/ says.
if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers "$UNITS/meterctl.sysusers"
else
    useradd --system --user-group --home-dir / --no-create-home --shell /usr/sbin/nologin meterctl
fi
install -d -m 750 -o root -g meterctl /etc/meterctl
printf '%s\\n' "$DATABASE_URL" | install -m 640 -o root -g meterctl /dev/stdin /etc/meterctl/database_url
printf '%s\\n' "$STRIPE_SECRET_KEY" | install -m 640 -o root -g meterctl /dev/stdin /etc/meterctl/stripe_secret_key
unset DATABASE_URL STRIPE_SECRET_KEY
"""

WRAPPER = """#!/bin/sh
# Stands where the installed command stands. It notes what it was given and what came of it, and takes --live away: that
# needs a live-mode key, and a local Stripe is shown test-mode keys only.
trap : TERM # systemd tells all processes of a service; the command decides when this one ends
note=$(mktemp /opt/meterctl/record/note-XXXXXX)
echo "$*" >"$note.arguments"
id -un >"$note.user"
env >"$note.environment"
cp /proc/self/status "$note.status"
for word; do
    shift
    [ "$word" = --live ] || set -- "$@" "$word"
done
LD_LIBRARY_PATH=/opt/meterctl/python/lib PYTHONHOME=/opt/meterctl/python \\
    PYTHONPATH=/opt/meterctl/src:/opt/meterctl/site-packages PYTHONDONTWRITEBYTECODE=1 \\
    /opt/meterctl/python/bin/{python} -m meterctl "$@" >"$note.output" 2>&1
code=$?
cat "$note.output"
echo $code >"$note.tmp" && mv "$note.tmp" "$note.code"
exit $code
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One use of the installed command: what the wrapper noted."""

    arguments: str
    user: str
    environment: dict[str, str]
    status: dict[str, str]
    output: str
    code: int


@dataclass(kw_only=True)
class PrivateMachine:
    """A sandbox, and `start` to run something as the machine's first process."""

    database_url: str
    stripe: LocalStripe
    directory: Path
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def record(self) -> Path:
        """What the machine leaves for the test; open to its users."""
        return self.directory / "record"

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PLACE": str(self.directory / "place"),
            "RECORD": str(self.record),
            "WRAPPER": str(self.directory / "wrapper"),
            "PYTHON": sys.base_prefix,
            "SITE_PACKAGES": site.getsitepackages()[0],
            "SOURCES": str(SOURCES),
            "UNITS": str(UNITS),
            "DATABASE_URL": self.database_url,
            "STRIPE_SECRET_KEY": self.stripe.api_key,
        }

    def start(self, script: str, **environment: str) -> None:
        """Run a shell script, which should `exec`, as process 1 of the machine. What it prints is `console`."""
        (self.directory / "wrapper").write_text(WRAPPER.format(python=Path(sys.executable).resolve().name))
        with (self.record / "console").open("ab") as console:
            process = subprocess.Popen(
                ["unshare", *ISOLATION, "--kill-child=SIGKILL", "--", "/bin/sh", "-c", SET_UP + script],  # noqa: S607 -- as below
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)

    @property
    def ended(self) -> bool:
        """Whether process 1 is gone, and with it the machine."""
        return any(process.poll() is not None for process in self.processes)

    @property
    def console(self) -> str:
        """What process 1 printed."""
        return (self.record / "console").read_text(errors="replace")

    def jobs(self) -> list[Job]:
        """Return the uses of the command that have ended."""
        return [_job(code.with_suffix("")) for code in sorted(self.record.glob("note-*.code"))]

    def wait_for_jobs(self, count: int, *, within_s: float) -> list[Job]:
        """Return the jobs as soon as `count` have ended."""
        give_up_s = time.monotonic() + within_s
        while len(self.jobs()) < count:
            if self.ended or time.monotonic() > give_up_s:
                pytest.fail(f"{len(self.jobs())} of {count} jobs ended; {self.console}")
            time.sleep(0.2)
        return self.jobs()

    def meterctl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command on the same sandbox, outside the machine."""
        return subprocess.run(
            [sys.executable, "-m", "meterctl", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": self.database_url,
                "STRIPE_SECRET_KEY": self.stripe.api_key,
                "METERCTL_STRIPE_API_BASE": self.stripe.url,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def sql(self, text: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.database_url) as connection:
            cursor = connection.execute(text, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def usage(self, count: int, *, user: str = "u1", known: bool = True) -> None:
        """`count` rows of one unit, an hour old, by a subscribed user whose customer Stripe knows or does not."""
        self.sql("INSERT INTO subscriptions (user_id, stripe_customer_id) VALUES (%s, %s)", user, f"cus_{user}")
        self.sql(
            "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)"
            " SELECT 'ws', %s, 1, now() - interval '1 hour' FROM generate_series(1, %s)",
            user,
            count,
        )
        if known:
            self.stripe.create_customer(f"cus_{user}")

    def stop(self) -> None:
        """End what was started, and with it everything that it started."""
        for process in self.processes:
            process.kill()
            process.wait(timeout=10)


def _job(note: Path) -> Job:
    return Job(
        arguments=note.with_suffix(".arguments").read_text().strip(),
        user=note.with_suffix(".user").read_text().strip(),
        environment=_pairs(note.with_suffix(".environment"), "="),
        status={name: value.strip() for name, value in _pairs(note.with_suffix(".status"), ":").items()},
        output=note.with_suffix(".output").read_text(),
        code=int(note.with_suffix(".code").read_text()),
    )


def _pairs(file: Path, separator: str) -> dict[str, str]:
    split = (line.partition(separator) for line in file.read_text().splitlines())
    return {name: value for name, _, value in split}


def require_private_machine() -> None:
    """Skip the test where no such machine can be made."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    made = subprocess.run(
        ["unshare", *ISOLATION, "true"],  # noqa: S607 -- wherever PATH has it
        stderr=subprocess.PIPE,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"no namespaces here: {made.stderr.decode().strip()}")


@contextlib.contextmanager
def private_machine() -> Iterator[PrivateMachine]:
    """A machine with a sandbox: a PostgreSQL on TCP (its socket is closed to other accounts) and a local Stripe."""
    directory = Path(tempfile.mkdtemp(prefix="mt-machine-"))
    (directory / "place").mkdir()
    (directory / "record").mkdir()
    (directory / "record").chmod(0o777)
    try:
        with EmbeddedPostgres(tcp=True) as server, LocalStripe() as stripe:
            database_url = server.tcp_conninfo()
            migrate(database_url)
            with psycopg.connect(database_url) as connection:
                connection.execute(SHIPPED_TABLES.read_bytes())
            stripe.create_meter(event_name="ai_suggestion")
            machine = PrivateMachine(database_url=database_url, stripe=stripe, directory=directory)
            try:
                yield machine
            finally:
                machine.stop()
    finally:
        shutil.rmtree(directory)
