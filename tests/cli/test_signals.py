"""Signals outside of a delivery that goes well: while calls hang, and while a run only waits."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from cli.conftest import Shell
from cli.waiting import until, until_sent
from meterctl.sandbox.local_stripe import Fault, FaultKind

IN_ORDER_S = 15.0
"""Far above what an orderly end takes without calls under way, far below any time-out of ours or of the tests."""

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


@contextmanager
def started(shell: Shell, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command for as long as the block lasts, at most."""
    with shell.start(*arguments) as child:
        try:
            yield child
        finally:
            child.kill()


def told_soon(child: "subprocess.Popen[str]", number: signal.Signals) -> str:
    """Send the signal; return what the command said on stderr on its way out, which took no longer than it should."""
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=IN_ORDER_S)
    assert "Traceback" not in stdout + stderr
    return stderr


@SIGNALS
def test_a_second_signal_ends_at_once(shell: Shell, number: signal.Signals, code: int) -> None:
    """The first waits for calls under way, here for up to 30 s; who asks twice does not want to."""
    shell.usage(20, customers=20)
    shell.stripe.add_fault(Fault(kind=FaultKind.TIME_OUT, when="after", times=None))
    with started(shell, "report-usage") as child:
        until_sent(shell)
        child.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=2)
        told_soon(child, number)
        assert child.returncode == code
    shell.stripe.clear_faults()
    assert shell.run("report-usage", "--lock-timeout", "20s").code == 0
    assert shell.total == 20
    shell.assert_exact()


@SIGNALS
def test_a_signal_ends_the_wait_for_the_lock(shell: Shell, number: signal.Signals, code: int) -> None:
    with psycopg.connect(shell.database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:ai_suggestion', 0))")
        with started(shell, "report-usage", "--lock-timeout", "1h") as child:
            until(lambda: bool(shell.sql("SELECT id FROM meterctl.runs")))
            assert told_soon(child, number)
    assert child.returncode == code


@SIGNALS
def test_a_signal_ends_the_wait_before_a_job_is_tried_again(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.stripe.stop_listening()
    with started(shell, "report-usage", "--job-retries", "1", "--job-retry-delay", "600") as child:
        assert child.stderr is not None
        assert "job_retry" in child.stderr.readline()
        told_soon(child, number)
    assert child.returncode == code
