"""`meterctl backfill` as a person and a script use it: shown first, asked for, locked, killed and taken up again."""

import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli.conftest import TIMEOUT_S, Shell
from cli.waiting import until, until_sent

DAYS = ("--since", "2026-01-01", "--until")


def span(shell: Shell, *, until_ago: str = "2 hours") -> tuple[str, ...]:
    """Ten days up to so long ago."""
    text = "SELECT to_char(now() - interval '10 days', {0}), to_char(now() - %s::interval, {0})"
    since, end = shell.sql(text.format("""'YYYY-MM-DD"T"HH24:MI:SS"+00"'"""), until_ago)[0]
    return ("backfill", "--meter", "ai_suggestion", "--since", since, "--until", end)


def use(shell: Shell, count: int = 3, *, ago: str = "3 days", user: str = "u1") -> None:
    shell.sql(
        "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at)"
        " SELECT 'ws', %s, 2, now() - %s::interval FROM generate_series(1, %s)",
        user,
        ago,
        count,
    )


@pytest.fixture
def past(shell: Shell) -> Shell:
    """Three rows within the span, one young one, one that is reported."""
    shell.usage(1)
    use(shell)
    use(shell, 1)
    shell.sql("UPDATE usage_events SET stripe_reported_at = now() WHERE id = (SELECT max(id) FROM usage_events)")
    return shell


def written(shell: Shell) -> tuple[int, int]:
    """Events and runs."""
    text = "SELECT (SELECT count(*) FROM meterctl.meter_events), (SELECT count(*) FROM meterctl.runs)"
    events, runs = shell.sql(text)[0]
    return events, runs


def test_a_dry_run_shows_and_writes_nothing(past: Shell) -> None:
    done = past.run(*span(past), "-n")
    assert done.code == 0
    first, *further = done.stdout.splitlines()
    assert first.startswith("ai_suggestion: would send 3 events, 6 units, 1 customers; oldest ")
    assert further[1:] == ["  already reported: 1", "  too old for Stripe: 0", "  late: 0"]
    assert written(past) == (0, 0)
    assert past.stripe.requests() == []


def test_its_plan_as_json_has_pinned_keys(past: Shell) -> None:
    document = past.run(*span(past), "-n", "--json").document
    assert (document["command"], document["dry_run"], document["run_id"]) == ("backfill", True, None)
    (plan,) = document["plan"]
    assert list(plan) == [
        "event_name",
        "events",
        "units",
        "customers",
        "oldest",
        "before_since",
        "calls",
        "minutes",
        "since",
        "until",
        "already_reported",
        "too_old",
        "late",
        "newer",
    ]


def test_minutes_are_those_at_the_rate_limit(past: Shell) -> None:
    use(past, 1197)
    past.extra = {"METERCTL_STRIPE_API_BASE": ""}
    (plan,) = past.run(*span(past), "-n", "--json").document["plan"]
    assert (plan["calls"], plan["minutes"]) == (1200, 1.0)


def test_without_a_terminal_it_wants_yes(past: Shell) -> None:
    refused = past.run(*span(past))
    assert (refused.code, "--yes" in refused.stderr, "would send 3" in refused.stdout) == (2, True, True)
    assert written(past) == (0, 0)
    done = past.run(*span(past), "--yes")
    assert done.code == 0
    assert done.stdout.splitlines()[-1] == "backfill: total 3, reported 3, units 6"
    assert (past.total, past.run("runs", "--json").document["runs"][0]["command"]) == (6, "backfill")
    past.assert_exact()
    assert past.run("report").code == 0
    assert past.total == 7


def test_json_is_one_document_and_the_plan_goes_beside_it(past: Shell) -> None:
    done = past.run(*span(past), "--yes", "--json")
    assert (done.document["totals"]["reported"], done.document["plan"][0]["events"]) == (3, 3)
    assert "would send 3 events" in done.stderr


def test_quiet_and_well_is_zero_bytes(past: Shell) -> None:
    for _ in range(2):
        done = past.run(*span(past), "--yes", "-q")
        assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert past.total == 6


def test_nothing_to_send_asks_nobody(shell: Shell) -> None:
    done = shell.run(*span(shell))
    assert (done.code, "would send 0 events" in done.stdout) == (0, True)
    assert shell.run(*span(shell), "--json").document["plan"][0]["events"] == 0
    assert written(shell) == (0, 0)


def test_without_a_key_it_shows_and_writes_nothing(past: Shell) -> None:
    past.extra = {"STRIPE_SECRET_KEY": "", "METERCTL_STRIPE_API_BASE": ""}
    done = past.run(*span(past), "--yes")
    assert (done.code, "stripe_not_configured" in done.stderr, written(past)) == (0, True, (0, 0))


# Live mode


@pytest.fixture
def live(past: Shell) -> Shell:
    past.stripe.create_meter(event_name="ai_suggestion", livemode=True)
    past.stripe.create_customer("cus_1", livemode=True)
    return replace(past, live=True)


def test_live_must_be_meant(live: Shell) -> None:
    refused = live.run(*span(live), "--yes")
    assert (refused.code, "--live" in refused.stderr) == (78, True)


def test_live_mode_wants_the_account(live: Shell) -> None:
    account = live.stripe.account_id
    for confirm in ((), ("--confirm", "acct_another")):
        refused = live.run(*span(live), "--live", "--yes", *confirm)
        assert (refused.code, f"--confirm {account}" in refused.stderr, written(live)) == (2, True, (0, 0))
    assert live.run(*span(live), "--live", "--yes", "--confirm", account).code == 0
    assert sum(live.stripe.totals(livemode=True).values()) == 6


# On a terminal


class Terminal:
    """The command with a terminal for stdin and stderr."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self.fd, end = pty.openpty()
        self.child = subprocess.Popen(
            [*shell.program, *arguments],
            env=shell.environment | {"TERM": "xterm"},
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=end,
        )
        os.close(end)
        self.said = b""

    def until_it_says(self, text: str) -> None:
        give_up_s = time.monotonic() + TIMEOUT_S
        while text.encode() not in self.said:
            assert time.monotonic() < give_up_s, self.said
            self.said += os.read(self.fd, 1024)

    def answers(self, text: str) -> int:
        """Type a line; return the exit code."""
        os.write(self.fd, text.encode() + b"\n")
        try:
            while chunk := os.read(self.fd, 1024):
                self.said += chunk
        except OSError:  # the other end is closed
            pass
        return self.child.wait(timeout=TIMEOUT_S)


@contextmanager
def asked(shell: Shell, question: str, *arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(shell, *span(shell), *arguments)
    try:
        terminal.until_it_says(question)
        yield terminal
    finally:
        terminal.child.kill()
        terminal.child.communicate()
        os.close(terminal.fd)


@pytest.mark.parametrize("answer", ["n", ""])
def test_no_is_no(past: Shell, answer: str) -> None:
    with asked(past, "Send these 3 events? [y/N]") as terminal:
        assert terminal.answers(answer) == 0
    assert b"nothing was done" in terminal.said
    assert written(past) == (0, 0)


def test_yes_delivers_with_a_bar(past: Shell) -> None:
    with asked(past, "Send these 3 events? [y/N]") as terminal:
        assert terminal.answers("y") == 0
    assert b"3/3" in terminal.said
    assert past.total == 6


def test_in_live_mode_the_account_is_typed(live: Shell) -> None:
    for answer, total in (("y", 0), (live.stripe.account_id, 6)):
        with asked(live, "Type the account's id", "--live") as terminal:
            assert terminal.answers(answer) == 0
        assert sum(live.stripe.totals(livemode=True).values()) == total


def test_what_came_after_it_was_shown_is_not_sent(past: Shell) -> None:
    with asked(past, "Send these 3 events?") as terminal:
        use(past, 1)
        assert terminal.answers("y") == 69
    assert b"has changed since it was shown: now 4 events, 8 units" in terminal.said
    assert written(past) == (0, 1)
    assert past.total == 0


def test_ctrl_c_at_the_question_ends_it(past: Shell) -> None:
    with asked(past, "Send these 3 events?") as terminal:
        terminal.child.send_signal(signal.SIGINT)
        assert terminal.child.wait(timeout=TIMEOUT_S) == 130
    assert written(past) == (0, 0)


# Beside the nightly run, and after a death


@contextmanager
def at_work(shell: Shell, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that cannot write down Stripe's first answer before the block ends."""
    shell.sql(
        "CREATE TABLE gate AS SELECT 'closed' AS state;"
        "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " WHILE EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.05); END LOOP; RETURN NEW; END$$;"
        "CREATE TRIGGER hold_up BEFORE UPDATE ON meterctl.meter_events FOR EACH ROW WHEN (NEW.state = 'accepted')"
        " EXECUTE FUNCTION hold_up()"
    )
    child = shell.start(*arguments)
    until_sent(shell)
    yield child
    shell.sql("DELETE FROM gate")
    child.communicate(timeout=TIMEOUT_S)


def test_while_the_nightly_run_is_at_work_it_is_locked_out(past: Shell) -> None:
    with at_work(past, "report-usage") as night:
        locked = past.run(*span(past), "--yes")
        assert (locked.code, "locked by meterctl" in locked.stderr) == (75, True), locked.stderr
    assert (night.returncode, past.total) == (0, 7)


def test_the_nightly_run_is_locked_out_meanwhile(past: Shell) -> None:
    with at_work(past, *span(past), "--yes") as backfill:
        locked = past.run("report-usage")
        assert (locked.code, "locked by meterctl" in locked.stderr) == (75, True), locked.stderr
    assert (backfill.returncode, past.total) == (0, 6)


def test_it_waits_for_the_lock_if_told_so(past: Shell) -> None:
    with psycopg.connect(past.database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:ai_suggestion', 0))")
        child = past.start(*span(past), "--yes", "--lock-timeout", "30s")
        until(lambda: written(past)[1])
    child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, past.total) == (0, 6)


@pytest.mark.parametrize("sent", [1, 40, 100])
def test_killed_in_the_middle_and_run_again_it_is_exact(shell: Shell, sent: int) -> None:
    shell.usage(7, customers=12)
    for n in range(1, 13):
        use(shell, 10, user=f"u{n}")
    shell.stripe.set_options(latency_ms=50)
    child = shell.start(*span(shell), "--yes")
    until_sent(shell, sent)
    child.kill()
    child.communicate()
    shell.stripe.set_options(latency_ms=0)
    done = shell.run(*span(shell), "--yes", "--lock-timeout", "20s")
    assert done.code == 0, done.stderr
    assert shell.total == 240
    shell.assert_exact()
    unreported = "SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL"
    assert shell.sql(unreported) == [(7,)], "what is young waits for the night"


# What it refuses


def config(tmp_path: Path, since: str) -> str:
    file = tmp_path / "config.toml"
    file.write_text(
        '[meters.ai_suggestion]\nsource = "rows"\nformula = "sum"\ntable = "usage_events"\nvalue = "quantity"\n'
        f'occurred_at = "created_at"\nsince = "{since}"\n'
        'payers = [{ lookup = "individual", column = "user_id" }]\n'
    )
    return str(file)


def test_rows_before_the_cut_over_are_refused_unless_they_are_meant(past: Shell, tmp_path: Path) -> None:
    since: Any = past.sql("SELECT now() - interval '2 days'")[0][0]
    file = config(tmp_path, since.isoformat())
    for dry in ((), ("-n",)):
        refused = past.run("-c", file, *span(past), "--yes", *dry)
        assert (refused.code, "3 unreported rows" in refused.stderr) == (2, True), refused.stderr
        assert "--before-cut-over" in refused.stderr
    assert written(past) == (0, 0)
    assert past.run("-c", file, "report").code == 0
    assert past.total == 1
    assert past.run("-c", file, *span(past), "--yes", "--before-cut-over").code == 0
    assert past.total == 7
    already = past.sql("SELECT count(*) FROM meterctl.meter_events")[0][0]
    assert already == 4, "what was stamped before stays as it was"


def test_a_span_after_the_cut_over_needs_no_word(past: Shell, tmp_path: Path) -> None:
    since: Any = past.sql("SELECT now() - interval '4 days'")[0][0]
    assert past.run("-c", config(tmp_path, since.isoformat()), *span(past), "--yes").code == 0
    assert past.total == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "2026-01-02", "--until", "2026-01-01"), "not before"),
        (("--since", "2026-01-01", "--until", "2100-01-01"), "lies ahead"),
        (("--since", "yesterday", "--until", "2026-01-01"), "no instant"),
        (("--until", "2026-01-01"), "--since"),
    ],
)
def test_a_span_that_makes_no_sense_is_refused(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    done = shell.run("backfill", "--meter", "ai_suggestion", *arguments, "--yes")
    assert (done.code, said in done.stderr) == (2, True), done.stderr


def test_an_unknown_meter_is_refused(shell: Shell) -> None:
    done = shell.run("backfill", "--meter", "nonesuch", *DAYS, "2026-01-02")
    assert (done.code, "no enabled meter is called nonesuch" in done.stderr) == (2, True)


# Other kinds


DEVICES = """
[lookups.organization]
table = "subscriptions"
subject = "organization_id"
customer = "stripe_customer_id"

[meters.active_sensors]
source = "gauge"
formula = "last"
table = "sensors"
where = "is_active"
payers = [{ lookup = "organization", column = "organization_id" }]

[meters.temperature_readings]
source = "counter"
payers = [{ lookup = "organization", column = "organization_id" }]
"""


def test_levels_and_volumes_too(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    shell.stripe.create_meter(event_name="active_sensors", formula="last")
    shell.stripe.create_meter(event_name="temperature_readings")
    shell.stripe.create_customer("cus_acme")
    shell.sql(
        "INSERT INTO organizations VALUES ('acme', 'Acme');"
        "INSERT INTO subscriptions (organization_id, stripe_customer_id) VALUES ('acme', 'cus_acme');"
        "INSERT INTO sensors VALUES ('s1', 'acme'), ('s2', 'acme');"
        "INSERT INTO meterctl.usage_outbox (meter, subject, quantity, occurred_at) VALUES"
        " ('temperature_readings', 'acme', 5, now() - interval '3 days'),"
        " ('temperature_readings', 'acme', 7, now() - interval '20 days')"
    )
    for meter in ("active_sensors", "temperature_readings"):
        command, _, _, *rest = span(shell)
        for _ in range(2):
            done = shell.run("-c", str(file), command, "--meter", meter, *rest, "--yes")
            assert done.code == 0, done.stderr
    assert shell.stripe.totals() == {("active_sensors", "cus_acme"): 2, ("temperature_readings", "cus_acme"): 5}
