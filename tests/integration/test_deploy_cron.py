"""deploy/crontab: what it says, and Debian's real cron running it.

Real cron takes up to a minute to begin and root to be fenced in, so that part is asked for with METERCTL_TEST_CRON=1.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import CRONTAB, METERCTL, cron_environment, cron_jobs, every_minute, words
from private_machine import Job, PrivateMachine, private_machine, require_private_machine

WITHIN_S = 100
"""Cron begins at the next full minute, and the jobs are short."""

RUN_CRON = """
rm -f /etc/cron.d/* /etc/cron.*/*
: >/etc/crontab
mount -t tmpfs -o mode=755 tmpfs /var/spool/cron
mkdir /var/spool/cron/crontabs
printf '%s' "$CRONTAB" >/run/crontab
install -m 644 /run/crontab /etc/cron.d/meterctl
if [ -e /usr/sbin/sendmail ]; then
    printf '#!/bin/sh\\ncat >"$(mktemp /opt/meterctl/record/mail-XXXXXX)"\\n' >/run/sendmail
    chmod 755 /run/sendmail
    mount --bind /run/sendmail /usr/sbin/sendmail
fi
unset CRONTAB
exec cron -f
"""


@pytest.fixture(scope="module")
def shipped() -> str:
    return CRONTAB.read_text(encoding="utf-8")


def test_nightly_hourly_and_watching_line_are_active(shipped: str) -> None:
    assert [(job.times, [words(command)[1] for command in job.commands]) for job in cron_jobs(shipped)] == [
        (("0", "2", "*", "*", "*"), [["webhooks", "pull"], ["report"]]),
        (("20", "*", "*", "*", "*"), [["webhooks", "pull"]]),
        (("30", "*", "*", "*", "*"), [["report"]]),
        (("0", "7", "*", "*", "*"), [["summary"]]),
    ]


def test_report_lines_have_the_flags_of_the_nightly_job(shipped: str) -> None:
    """The hourly one differs by --recent alone."""
    nightly, _, hourly, _ = (words(job.commands[-1])[2] for job in cron_jobs(shipped))
    assert nightly == {
        "-q": None,
        "--live": None,
        "--require-stripe": None,
        "--lock-timeout": "15m",
        "--max-duration": "3h",
        "--job-retries": "3",
        "--job-retry-delay": "60",
    }
    assert hourly == nightly | {"--recent": "2d"}


def test_watching_line_is_quiet_and_knows_how_old_is_too_old(shipped: str) -> None:
    assert words(cron_jobs(shipped)[-1].command)[2] == {"--max-age": "26h", "-q": None}


def test_events_are_pulled_in_quiet_and_before_a_report(shipped: str) -> None:
    nightly, pull, hourly, _ = cron_jobs(shipped)
    assert nightly.commands[0] == pull.command
    assert words(pull.command)[2] == {"-q": None, "--live": None}
    assert int(pull.times[0]) < int(hourly.times[0])


def test_every_job_has_an_absolute_path_and_its_user(shipped: str) -> None:
    programs = {(job.user, words(command)[0]) for job in cron_jobs(shipped) for command in job.commands}
    assert programs == {("meterctl", METERCTL)}


def test_secrets_come_from_files_and_mail_from_somebody_who_reads_it(shipped: str) -> None:
    """A secret in the crontab would be in every job's environment, and mail to the account itself is never read."""
    assert cron_environment(shipped) == {
        "SHELL": "/bin/sh",
        "PATH": "/usr/bin:/bin",
        "DATABASE_URL_FILE": "/etc/meterctl/database_url",
        "STRIPE_SECRET_KEY_FILE": "/etc/meterctl/stripe_secret_key",
        "MAILTO": "root",
        "CRON_TZ": "UTC",
    }


def test_cron_can_read_the_file(shipped: str) -> None:
    """Cron passes over a last line without its end, turns % into a new line, and refuses lines of 1000 characters."""
    assert shipped.endswith("\n")
    assert shipped.isascii()
    assert not any("%" in job.command or len(job.command) >= 1000 for job in cron_jobs(shipped))


def test_nightly_and_hourly_runs_start_half_an_hour_apart(shipped: str) -> None:
    nightly, _, hourly, _ = (int(job.times[0]) for job in cron_jobs(shipped))
    assert abs(hourly - nightly) == 30


def test_replacing_the_times_changes_nothing_else(shipped: str) -> None:
    replaced = every_minute(shipped)
    assert {job.times for job in cron_jobs(replaced)} == {("*",) * 5}
    assert [(job.user, job.command) for job in cron_jobs(replaced)] == [
        (job.user, job.command) for job in cron_jobs(shipped)
    ]
    differing = [line for line in zip(shipped.splitlines(), replaced.splitlines(), strict=True) if line[0] != line[1]]
    assert len(differing) == len(cron_jobs(shipped))


@pytest.fixture
def machine() -> Iterator[PrivateMachine]:
    if not os.environ.get("METERCTL_TEST_CRON"):
        pytest.skip("set METERCTL_TEST_CRON=1 to run Debian's cron (as root, a minute for each test)")
    if shutil.which("cron", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("no cron here (apt-get install cron)")
    require_private_machine()
    with private_machine() as made:
        first = made.meterctl("report", "-q")  # the watching line looks for a good run
        assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
        yield made


def run_shipped_lines(machine: PrivateMachine, shipped: str) -> list[Job]:
    """Let cron run the lines with the shipped environment, and one variable more: where the local Stripe is."""
    crontab = f"METERCTL_STRIPE_API_BASE={machine.stripe.url}\n{every_minute(shipped)}"
    machine.start(RUN_CRON, CRONTAB=crontab)
    return machine.wait_for_jobs(sum(len(job.commands) for job in cron_jobs(shipped)), within_s=WITHIN_S)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_cron_runs_the_shipped_lines_silently_and_bills_once(machine: PrivateMachine, shipped: str) -> None:
    """Both reports begin in the same second: one waits for the other's lock, and every unit is billed once."""
    machine.usage(40)
    jobs = run_shipped_lines(machine, shipped)
    commands = [command for job in cron_jobs(shipped) for command in job.commands]
    assert {f"{METERCTL} {job.arguments}" for job in jobs} == set(commands)
    assert [(job.code, job.output) for job in jobs] == [(0, "")] * len(commands)
    assert {job.user for job in jobs} == {"meterctl"}
    shipped_environment = cron_environment(shipped).items()
    assert all(shipped_environment - {("MAILTO", "root")} <= job.environment.items() for job in jobs)
    assert machine.stripe.totals() == {("ai_suggestion", "cus_u1"): 40}
    assert machine.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL") == [(0,)]
    assert not list(machine.record.glob("mail-*"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_cron_mails_root_what_a_person_must_see(machine: PrivateMachine, shipped: str) -> None:
    """A customer that Stripe does not know: one report names it and ends with 10, and its output goes out by mail."""
    machine.usage(3)
    machine.usage(1, user="unknown", known=False)
    jobs = run_shipped_lines(machine, shipped)
    reports = [job for job in jobs if job.arguments.startswith("report")]
    assert sorted(job.code for job in reports) == [0, 10]
    assert all("resource_missing" in job.output for job in reports if job.code == 10)
    assert machine.stripe.totals() == {("ai_suggestion", "cus_u1"): 3}
    if Path("/usr/sbin/sendmail").exists():
        mails = [mail.read_text() for mail in machine.record.glob("mail-*")]
        assert any("To: root" in mail and "resource_missing" in mail for mail in mails)
