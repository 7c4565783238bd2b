"""deploy/systemd/: the units as systemd reads them, beside what cron and the command say."""

import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from deployment import CRONTAB, METERCTL, SYSUSERS, Options, cron_jobs, read_unit, services, timers, words
from meterctl.errors import ExitCode

LATER = {ExitCode.UNAVAILABLE, ExitCode.LOCKED}
EXPOSURE_MAX = "12"
"""In tenths, as `systemd-analyze security --threshold` takes it."""

JITTERS_MAX = {
    "meterctl-recent": timedelta(minutes=2),
    "meterctl-report": timedelta(minutes=10),
    "meterctl-webhooks": timedelta(minutes=5),
}
IN_FLIGHT_MAX = timedelta(seconds=35)
"""Connect 5 s and read 30 s: so long a call under way may take after SIGTERM."""

needs_systemd_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
reports = [path for path in services() if path.stem != "meterctl-webhooks"]
each_report = pytest.mark.parametrize("service", reports, ids=lambda path: path.stem)
each_service = pytest.mark.parametrize("service", services(), ids=lambda path: path.stem)
each_timer = pytest.mark.parametrize("timer", timers(), ids=lambda path: path.stem)


def analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *arguments],  # noqa: S607 -- wherever PATH has it
        env={"PATH": os.environ["PATH"], "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def span(text: str) -> timedelta:
    """Given a span as these units write them (`3h 30min`, `2min`), return it."""
    units = {"s": "seconds", "min": "minutes", "h": "hours"}
    found = re.findall(r"(\d+)(s|min|h)\b", text)
    assert found, text
    return sum((timedelta(**{units[unit]: int(count)}) for count, unit in found), timedelta())


def only(unit: Path, section: str, directive: str) -> str:
    (value,) = read_unit(unit)[section][directive]
    return value


def report_options(service: Path) -> Options:
    program, subcommands, options = words(only(service, "Service", "ExecStart"))
    assert (program, subcommands) == (METERCTL, ["report"])
    return options


def test_a_service_and_a_timer_for_each_job() -> None:
    expected = ["meterctl-recent", "meterctl-report", "meterctl-webhooks"]
    assert [path.stem for path in services()] == expected
    assert [path.stem for path in timers()] == expected


@needs_systemd_analyze
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    """A misspelt directive leaves exit code 0, so stderr must be empty. The program must exist: ours stands for it."""
    installed = str(Path(sys.executable).parent / "meterctl")
    copies = [tmp_path / path.name for path in (*services(), *timers())]
    for original, copy in zip((*services(), *timers()), copies, strict=True):
        copy.write_text(original.read_text(encoding="utf-8").replace(METERCTL, installed), encoding="utf-8")
    done = analyze("verify", "--recursive-errors=yes", *copies)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd_analyze
@each_service
def test_exposure_is_small(service: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", service)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@needs_systemd_analyze
@pytest.mark.parametrize(
    ("timer", "expected"),
    [
        ("meterctl-recent", "*-*-* *:30:00 UTC"),
        ("meterctl-report", "*-*-* 02:00:00 UTC"),
        ("meterctl-webhooks", "*-*-* *:20:00 UTC"),
    ],
)
def test_timer_elapses_when_it_says(timer: str, expected: str) -> None:
    (path,) = (path for path in timers() if path.stem == timer)
    assert only(path, "Timer", "OnCalendar") == expected
    done = analyze("calendar", expected)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Next elapse:" in done.stdout


@each_timer
def test_timer_catches_up_and_keeps_its_interval(timer: Path) -> None:
    """A jitter that changed from run to run would stretch the hour that an invoice waits."""
    directives = read_unit(timer)["Timer"]
    assert directives["Persistent"] == ["true"]
    assert directives["FixedRandomDelay"] == ["true"]
    assert timedelta() < span(only(timer, "Timer", "RandomizedDelaySec")) <= JITTERS_MAX[timer.stem]
    assert only(timer, "Install", "WantedBy") == "timers.target"


def test_units_and_cron_lines_agree() -> None:
    """Cron has no Restart=, so its lines alone retry by themselves."""
    commands = [command for job in cron_jobs(CRONTAB.read_text()) for command in job.commands]
    in_cron = [words(command)[2] for command in commands if " report " in command]
    for options in in_cron:
        assert (options.pop("--job-retries"), options.pop("--job-retry-delay")) == ("3", "60")
    recent, nightly = (report_options(service) for service in reports)
    assert [nightly, recent] == in_cron


def test_events_are_pulled_by_a_unit_and_before_the_nightly_report_as_in_cron() -> None:
    """The minus: the report runs whatever the pull came to."""
    _, nightly, webhooks = services()
    in_cron = {c for job in cron_jobs(CRONTAB.read_text()) for c in job.commands if " webhooks " in c}
    assert {only(webhooks, "Service", "ExecStart")} == in_cron
    assert {only(nightly, "Service", "ExecStartPre").removeprefix("-")} == in_cron
    assert only(nightly, "Service", "ExecStartPre").startswith("-")


def test_command_knows_every_option_used() -> None:
    for line in {command for job in cron_jobs(CRONTAB.read_text()) for command in job.commands}:
        _, command, options = words(line)
        shown = subprocess.run(
            [sys.executable, "-m", "meterctl", *command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown))
        assert options.keys() <= known


@each_report
def test_service_waits_longer_than_its_run(service: Path) -> None:
    """Lock, work and the orderly end all fit, so that systemd ends only what hangs."""
    options = report_options(service)
    run = span(f"{options['--lock-timeout']}in") + span(options["--max-duration"] or "")
    assert span(only(service, "Service", "TimeoutStartSec")) > run + IN_FLIGHT_MAX
    assert span(only(service, "Service", "TimeoutStopSec")) > 2 * IN_FLIGHT_MAX


@each_service
def test_only_what_means_later_is_started_again(service: Path) -> None:
    """Exit code 10 is a failure that shows and stays; a code that is new here must be thought about."""
    assert only(service, "Service", "Type") == "oneshot"
    assert only(service, "Service", "Restart") == "on-failure"
    excepted = {ExitCode(int(code)) for code in only(service, "Service", "RestartPreventExitStatus").split()}
    assert excepted == set(ExitCode) - LATER - {ExitCode.OK}
    assert only(service, "Service", "SuccessExitStatus") == str(int(ExitCode.TERMINATED))


def test_restarts_end() -> None:
    """The hourly limit leaves the next hour its start; the nightly one covers four runs that use all their time."""
    recent, nightly, webhooks = services()
    burst = {int(only(service, "Unit", "StartLimitBurst")) for service in services()}
    assert burst == {4}
    assert all(span(only(unit, "Unit", "StartLimitIntervalSec")) < timedelta(hours=1) for unit in (recent, webhooks))
    longest = timedelta(hours=3, minutes=15) + span(only(nightly, "Service", "RestartSec")) + IN_FLIGHT_MAX
    assert 4 * longest < span(only(nightly, "Unit", "StartLimitIntervalSec")) < timedelta(hours=24)


def test_services_differ_in_nothing_else() -> None:
    """What hardens one hardens the others."""
    units = [read_unit(service) for service in services()]
    for unit in units:
        del unit["Service"]["ExecStart"], unit["Unit"]["Description"], unit["Unit"]["StartLimitIntervalSec"]
        unit["Service"].pop("ExecStartPre", None)
    assert units == [units[0]] * 3


@each_service
def test_service_runs_as_the_account_that_sysusers_creates(service: Path) -> None:
    lines = [line.split() for line in SYSUSERS.read_text().splitlines() if not line.startswith("#")]
    assert [line[:2] for line in lines] == [["u", only(service, "Service", "User")]]


@each_service
def test_secrets_come_as_credentials(service: Path) -> None:
    """Named as meterctl looks for them: the variable's name in lower case."""
    assert read_unit(service)["Service"]["LoadCredential"] == [
        "database_url:/etc/meterctl/database_url",
        "stripe_secret_key:/etc/meterctl/stripe_secret_key",
    ]
