"""What checks find: each finding says how it came out, what was seen and what mends it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from meterctl.errors import ExitCode


class Status(StrEnum):
    """How a check came out. WARN: works, but somebody should know. SKIP: could not be looked at."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line. `remedy` is what to do about it; `code` is what a command ends with that met this."""

    status: Status
    message: str
    remedy: str | None = None
    code: ExitCode = ExitCode.OK

    @property
    def line(self) -> str:
        """The message with its remedy."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


def passed(message: str) -> Finding:
    """Return a finding of what is in order."""
    return Finding(status=Status.OK, message=message)


def warned(message: str, remedy: str | None) -> Finding:
    """Return a finding of what works, and what somebody should know of all the same."""
    return Finding(status=Status.WARN, message=message, remedy=remedy, code=ExitCode.PROBLEMS)


def failed(message: str, remedy: str | None, code: ExitCode = ExitCode.CONFIGURATION) -> Finding:
    """Return a finding of what keeps a run from doing its work; `code` is what the run would end with."""
    return Finding(status=Status.FAIL, message=message, remedy=remedy, code=code)


def skipped(why: str) -> Finding:
    """Return a finding of what could not be looked at; what kept it from that is told by itself."""
    return Finding(status=Status.SKIP, message=f"skipped: {why}")


def parted(line: str) -> tuple[str, str | None]:
    """Given a line as settings and catalogs tell it, return what is wrong and, after a semicolon, what to do."""
    message, _, remedy = line.partition("; ")
    return message, remedy or None


def verdict(findings: Iterable[Finding]) -> ExitCode:
    """Return what a command ends with that met all this."""
    return ExitCode.worst(finding.code for finding in findings)
