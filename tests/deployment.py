"""What deploy/ holds, read as cron and systemd read it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DEPLOY = Path(__file__).parent.parent / "deploy"
CRONTAB = DEPLOY / "crontab"
UNITS = DEPLOY / "systemd"
SYSUSERS = UNITS / "meterctl.sysusers"
METERCTL = "/opt/meterctl/bin/meterctl"

ENVIRONMENT_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
TIME_FIELD_COUNT = 5

Options = dict[str, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CronJob:
    """An active line of a file in /etc/cron.d: minute, hour, day, month, weekday; user; what the shell is given."""

    times: tuple[str, ...]
    user: str
    command: str

    @property
    def commands(self) -> list[str]:
        """What the shell makes of it, one after the other, whatever each comes to."""
        return [command.strip() for command in self.command.split(";")]


def active_lines(text: str) -> list[str]:
    """Return the lines that cron does not pass over: comments have a line of their own, blanks before it count."""
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def cron_environment(text: str) -> dict[str, str]:
    """Return the NAME=value lines, quotes removed."""
    found = (ENVIRONMENT_LINE.fullmatch(line.strip()) for line in active_lines(text))
    return {match[1]: match[2].strip("\"'") for match in found if match}


def cron_jobs(text: str) -> list[CronJob]:
    """Return the jobs in the order of the file."""
    lines = (line for line in active_lines(text) if not ENVIRONMENT_LINE.fullmatch(line.strip()))
    return [_cron_job(line) for line in lines]


def _cron_job(line: str) -> CronJob:
    *times, user, command = line.split(maxsplit=TIME_FIELD_COUNT + 1)
    return CronJob(times=tuple(times), user=user, command=command)


def every_minute(text: str) -> str:
    """Return the crontab with the five time fields of its jobs replaced, and nothing else."""
    jobs = {line for line in active_lines(text) if not ENVIRONMENT_LINE.fullmatch(line.strip())}
    fields = re.compile(rf"^(\S+\s+){{{TIME_FIELD_COUNT}}}")
    return "".join(f"{fields.sub('* * * * * ', line) if line in jobs else line}\n" for line in text.splitlines())


def words(command: str) -> tuple[str, list[str], Options]:
    """Given a command line, return program, subcommands, and options with their values (None: a flag)."""
    program, *rest = shlex.split(command)
    subcommands: list[str] = []
    options: Options = {}
    for position, word in enumerate(rest):
        if word.startswith("-"):
            value = rest[position + 1] if position + 1 < len(rest) else "-"
            options[word] = None if value.startswith("-") else value
        elif position == 0 or not rest[position - 1].startswith("-"):
            subcommands.append(word)
    return program, subcommands, options


Unit = dict[str, dict[str, list[str]]]
"""Section → directive → its values in order; directives such as LoadCredential may stand several times."""


def read_unit(path: Path) -> Unit:
    """Read a service or a timer; ours continue no line."""
    unit: Unit = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = unit.setdefault(line.strip("[]"), {})
        elif line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            section.setdefault(name, []).append(value)
    return unit


def services() -> list[Path]:
    """Return the service files."""
    return sorted(UNITS.glob("*.service"))


def timers() -> list[Path]:
    """Return the timer files."""
    return sorted(UNITS.glob("*.timer"))
