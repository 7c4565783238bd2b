"""Where the command may find itself: first process of a container, without a locale, on a narrow terminal, unread."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.conftest import Shell
from cli.test_summary_and_ledger import on_a_terminal
from cli.waiting import until
from meterctl.errors import ExitCode
from meterctl.sandbox.local_stripe import Fault, FaultKind

CUSTOMER = "cus_Zoë_東京"
ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale of one byte a character, as Python sees one: by itself it takes C for UTF-8 (PEP 538, PEP 540)."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ENDS_WITHIN_S = 15.0


def run_raw(environment: Mapping[bytes, bytes], command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
    )


def encoded(environment: Mapping[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}


def meterctl(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "meterctl", *arguments]


# Process 1: the kernel gives it no signal that it has no handler for (pid_namespaces(7))


@contextmanager
def first_process(shell: Shell, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The command as process 1 of its own PID namespace: what waits for it, and its number out here."""
    unshare = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child=SIGKILL", "--"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no PID namespaces for us here")
    with subprocess.Popen(
        [*unshare, *meterctl(*arguments)],
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        try:
            until(children.read_text)
            yield outer, int(children.read_text())
        finally:
            outer.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_as_first_process_a_signal_ends_the_run_in_order(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.usage(400, customers=40)
    shell.stripe.set_options(latency_ms=100)
    with first_process(shell, "report-usage", "--json") as (outer, pid):
        until(shell.stripe.events)
        os.kill(pid, number)
        stdout, stderr = outer.communicate(timeout=ENDS_WITHIN_S)
        assert outer.returncode == code, stderr
    assert f'"exit_code": {code}' in stdout
    assert {row[0] for row in shell.sql("SELECT state FROM meterctl.meter_events")} <= {"pending", "accepted"}
    assert 0 < shell.total < 400
    shell.assert_exact()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_as_first_process_a_signal_ends_the_wait_for_stripe(shell: Shell, number: signal.Signals, code: int) -> None:
    """Between two attempts of a job nothing is under way, and no signal handler of a run is there."""
    shell.stripe.stop_listening()
    with first_process(shell, "report-usage", "--job-retries", "1", "--job-retry-delay", "600") as (outer, pid):
        assert outer.stderr is not None
        assert "job_retry" in outer.stderr.readline()
        os.kill(pid, number)
        outer.communicate(timeout=ENDS_WITHIN_S)
        assert outer.returncode == code


# Locale


@pytest.fixture
def abroad(shell: Shell) -> Shell:
    """A customer id that ASCII and Latin-1 lack, rejected, so that every command has it to show."""
    shell.sql("INSERT INTO subscriptions (user_id, stripe_customer_id) VALUES ('zoë', %s)", CUSTOMER)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'zoë', 1)")
    assert shell.run("report-usage").code == 10
    return shell


@pytest.mark.parametrize(
    ("locale", "shown"),
    [
        ({}, CUSTOMER),
        pytest.param({"LANG": "C"}, CUSTOMER, marks=pytest.mark.long),
        ({"LC_ALL": "C"}, CUSTOMER),
        (ASCII_ONLY, r"cus_Zo\xeb_\u6771\u4eac"),
        ({"PYTHONIOENCODING": "latin-1"}, r"cus_Zoë_\u6771\u4eac"),
    ],
)
def test_any_locale_shows_every_name(abroad: Shell, locale: dict[str, str], shown: str) -> None:
    """As it is where the encoding has it, else escaped; cron sets no locale at all."""
    encoding = locale.get("PYTHONIOENCODING", "utf-8")
    environment = encoded(abroad.environment | locale)
    listed = run_raw(environment, meterctl("ledger", "list"))
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert shown in listed.stdout.decode(encoding)
    summary = run_raw(environment, meterctl("summary"))
    assert (summary.returncode, summary.stderr) == (10, b"")
    assert "ledger retry --code resource_missing" in summary.stdout.decode(encoding)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (b"GREETING", b"caf\xe9", 0),
        (b"PGAPPNAME", b"caf\xe9", 0),
        (b"METERCTL_CONFIG", b"/etc/caf\xe9.toml", 78),
        (b"DATABASE_URL", b"postgresql:///caf\xe9", 78),
        (b"STRIPE_SECRET_KEY", b"sk_test_caf\xe9", 78),
        (b"STRIPE_METER_EVENT_NAME", b"caf\xe9", 78),
    ],
)
def test_bytes_that_are_not_utf_8_are_no_bug(shell: Shell, name: bytes, value: bytes, code: int) -> None:
    done = run_raw(encoded(shell.environment) | {name: value}, meterctl("report-usage"))
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert (name in done.stderr) is (code == 78)


def test_an_environment_of_two_files_is_enough(shell: Shell, tmp_path: Path) -> None:
    """No PATH, no HOME, no locale: systemd and containers start programs like that."""
    shell.usage(3)
    (tmp_path / "url").write_text(shell.database_url + "\n")
    (tmp_path / "key").write_text(shell.stripe.api_key + "\n")
    for file in (tmp_path / "url", tmp_path / "key"):
        file.chmod(0o600)
    environment = {
        "DATABASE_URL_FILE": str(tmp_path / "url"),
        "STRIPE_SECRET_KEY_FILE": str(tmp_path / "key"),
        "METERCTL_STRIPE_API_BASE": shell.stripe.url,
    }
    done = run_raw(encoded(environment), meterctl("report-usage", "-q"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert shell.total == 3


# Terminals


@pytest.mark.parametrize(
    ("arguments", "extra"), [((), {"NO_COLOR": "1"}), (("--no-color",), {}), ((), {"TERM": "dumb"})]
)
@pytest.mark.parametrize("command", [("report-usage",), pytest.param(("summary",), marks=pytest.mark.long)])
def test_no_colour_where_none_is_wanted(
    shell: Shell, command: tuple[str, ...], arguments: tuple[str, ...], extra: dict[str, str]
) -> None:
    """The progress of a run is drawn while it lasts, on a terminal that can; that too is without colour."""
    shell.usage(10)
    shell.stripe.set_options(latency_ms=50)
    if command != ("report-usage",):
        shell.run("report-usage")
    done = on_a_terminal(shell, *command, *arguments, columns=120, **extra)
    assert done.code == 0
    assert COLOUR.findall(done.stdout) == []
    assert ("\x1b" in done.stdout) is (command == ("report-usage",) and extra.get("TERM") != "dumb")


@pytest.mark.long
@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", [("report-usage",), ("runs",), ("ledger", "list")])
def test_a_narrow_terminal_breaks_no_word(shell: Shell, command: tuple[str, ...], columns: int) -> None:
    """Numbers, instants and ids are there in one piece, or nobody can read or copy them."""
    shell.usage(1)
    shell.sql("UPDATE usage_events SET quantity = 12345")
    if command != ("report-usage",):
        shell.run("report-usage")
    done = on_a_terminal(shell, *command, columns=columns, TERM="dumb")
    assert done.code == 0
    words = set(done.stdout.split())
    expected = {"report-usage": {"meter", "ai_suggestion", "remaining", "12345"}}
    expected |= {"runs": {"run", "report-usage", "meaning", "12345"}, "ledger": {"ai_suggestion", "cus_1", "12345"}}
    assert expected[command[0]] <= words, done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns or "meaning" in words


# Streams


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_matter(shell: Shell, closed: str) -> None:
    """A daemon starts its children like that. What is for nobody must go into no socket, and the work is done."""
    shell.usage(3)
    done = run_raw(
        encoded(shell.environment), ["/bin/sh", "-c", f"exec {shlex.join(meterctl('report-usage'))} {closed}"]
    )
    assert done.returncode == 0, done.stderr
    shell.assert_exact()
    assert shell.total == 3


@pytest.mark.parametrize(
    "command",
    [
        "report-usage --json",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("ledger list", "runs", "summary --json")),
    ],
)
def test_a_reader_that_leaves_early_hears_and_causes_nothing(shell: Shell, command: str) -> None:
    """As in `meterctl … | head -0`, long after which the output comes."""
    shell.usage(300, customers=3)
    if command != "report-usage --json":
        assert shell.run("report-usage").code == 0
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        meterctl(*command.split()),
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as child:
        os.close(writer)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 0
    assert b"Traceback" not in stderr
    assert b"Broken" not in stderr
    assert shell.total == 300


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_told_in_a_line(shell: Shell) -> None:
    """`>> /var/log/meterctl.log` with no space left: the work is done, its record is not. Code 120 is Python's own."""
    shell.usage(3)
    command = f"exec {shlex.join(meterctl('report-usage'))} >/dev/full"
    done = run_raw(encoded(shell.environment), ["/bin/sh", "-c", command])
    assert shell.total == 3
    assert done.returncode in set(ExitCode)
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.long
def test_a_broken_log_stream_stops_no_delivery(shell: Shell) -> None:
    """Whoever read the log of the run has gone; the rest of a long run is still to be done."""
    shell.usage(5, customers=5)
    shell.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, times=1))
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        meterctl("report-usage", "-v"), env=shell.environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
    ) as child:
        os.close(writer)
        assert child.wait(timeout=60) == 0
    assert shell.total == 5
    shell.assert_exact()
