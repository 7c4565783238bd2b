"""A far side that is not there, or is there and says nothing: each run ends, with 69, before cron starts the next."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import SecretStr

from cli.conftest import Finished, Shell
from meterctl.errors import UnavailableError
from meterctl.sandbox.local_stripe import Fault, FaultKind
from meterctl.settings.model import StripeSettings
from meterctl.stripe_api.account import key_account
from meterctl.stripe_api.client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, stripe_client

ENDS_WITHIN_S = 180.0
SLOW = pytest.mark.skipif(
    not os.environ.get("METERCTL_TEST_LONG"), reason="waits out the real read time-out; METERCTL_TEST_LONG=1 runs it"
)


@contextmanager
def mute_server() -> Iterator[int]:
    """A port of loopback that accepts connections and never says a word: the kernel completes the handshake."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener.getsockname()[1]


def timed(shell: Shell, *arguments: str) -> tuple[Finished, float]:
    started_s = time.monotonic()
    child = shell.start(*arguments)
    try:
        stdout, stderr = child.communicate(timeout=ENDS_WITHIN_S)
    finally:
        child.kill()
    return Finished(child.returncode, stdout, stderr), time.monotonic() - started_s


def assert_away(done: Finished) -> None:
    assert done.code == 69, done.stderr
    assert "Traceback" not in done.stderr
    assert "Stripe" in done.stderr


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("arguments", [(), ("--json",), ("-q",)])
def test_a_stripe_that_is_not_there_ends_the_run_at_once(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.usage(3)
    shell.extra = {"METERCTL_STRIPE_API_BASE": f"http://127.0.0.1:{closed_port()}"}
    done, took_s = timed(shell, "report-usage", *arguments)
    assert_away(done)
    assert "hint: " in done.stderr
    assert done.stdout == ""
    assert took_s < CONNECT_TIMEOUT_S + 5
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events") == [(0,)]


def test_a_mute_stripe_is_away_after_one_read_time_out() -> None:
    """The command's own client, with less patience than it has by default."""
    with mute_server() as port:
        settings = StripeSettings(api_key=SecretStr("sk_test_example"), api_base=f"http://127.0.0.1:{port}")
        client = stripe_client(settings, connections_max=1, read_timeout_s=0.5)
        started_s = time.monotonic()
        with pytest.raises(UnavailableError):
            key_account(client, settings)
        assert 0.5 <= time.monotonic() - started_s < 5


@SLOW
@pytest.mark.timeout(ENDS_WITHIN_S + 60)
def test_a_mute_stripe_ends_the_run_before_its_first_write(shell: Shell) -> None:
    shell.usage(3)
    with mute_server() as port:
        shell.extra = {"METERCTL_STRIPE_API_BASE": f"http://127.0.0.1:{port}"}
        done, took_s = timed(shell, "report-usage")
    print(f"mute from the start: {took_s:.1f} s")  # noqa: T201 -- what -s is for: how long it really took
    assert_away(done)
    assert READ_TIMEOUT_S <= took_s < ENDS_WITHIN_S
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events") == [(0,)]


@SLOW
@pytest.mark.timeout(ENDS_WITHIN_S + 60)
@pytest.mark.parametrize("customers", [1, 300])
def test_a_stripe_that_falls_mute_in_mid_run_ends_it(shell: Shell, customers: int) -> None:
    """Whether one customer or more than there are calls in flight; what was in doubt is settled by the next run."""
    shell.usage(300, customers=customers)
    shell.stripe.add_fault(Fault(kind=FaultKind.TIME_OUT, nth=10, when="after", times=None))
    done, took_s = timed(shell, "report-usage")
    print(f"mute in mid-run, {customers} customers: {took_s:.1f} s")  # noqa: T201 -- as above
    assert_away(done)
    assert READ_TIMEOUT_S <= took_s < ENDS_WITHIN_S
    shell.stripe.clear_faults()
    assert shell.run("report-usage").code == 0
    assert shell.total == 300
    shell.assert_exact()


@pytest.mark.slow
@SLOW
def test_a_mute_postgresql_is_69_after_the_connect_time_out(shell: Shell) -> None:
    """Ten seconds, whatever the URL says: a firewall that swallows packets looks like this."""
    with mute_server() as port:
        shell.extra = {"DATABASE_URL": f"postgresql://meterctl@127.0.0.1:{port}/app"}
        done, took_s = timed(shell, "report-usage")
    assert (done.code, done.stdout) == (69, "")
    assert "hint: nothing is lost" in done.stderr
    assert "Traceback" not in done.stderr
    assert took_s < 20
