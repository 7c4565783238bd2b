"""What can stop a command, and the exit code each cause has.

    MeterctlError            never raised itself
    ├── UsageError        2  the command line asks for something it cannot
    ├── InputError       65  data given to the command is malformed
    ├── UnavailableError 69  Stripe or PostgreSQL is away: run again
    │   └── RefusedError     Stripe refuses one question
    ├── LockedError      75  another run holds the lock
    ├── NotPermittedError 77  PostgreSQL or Stripe says no
    └── ConfigurationError 78  settings, schema, account or mode do not fit

Expected outcomes of a delivery are values (`meterctl.core.model`), not exceptions.
"""

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The command's interface to cron, systemd and scripts. Treat an unknown code as failure."""

    OK = 0
    BUG = 1
    USAGE = 2
    PROBLEMS = 10
    DIFFERENCE = 11
    BAD_INPUT = 65
    UNAVAILABLE = 69
    LOCKED = 75
    NOT_PERMITTED = 77
    CONFIGURATION = 78
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for the README's table and for `--help`."""
        return _MEANINGS[self]

    @staticmethod
    def worst(codes: Iterable["ExitCode"]) -> "ExitCode":
        """The code that a run with all these outcomes ends with; OK when there is none."""
        return min(codes, key=_WORST_FIRST.index, default=ExitCode.OK)


_MEANINGS = {
    ExitCode.OK: "done, or nothing to do",
    ExitCode.BUG: "a bug in meterctl",
    ExitCode.USAGE: "wrong command line",
    ExitCode.PROBLEMS: "done, with new problems for a person (summary, doctor: while any is open)",
    ExitCode.DIFFERENCE: "a difference, or something is too old",
    ExitCode.BAD_INPUT: "bad input",
    ExitCode.UNAVAILABLE: "Stripe or PostgreSQL is away, or time ran out: run again",
    ExitCode.LOCKED: "another run holds the lock",
    ExitCode.NOT_PERMITTED: "not permitted by Stripe or PostgreSQL",
    ExitCode.CONFIGURATION: "configuration: settings, schema, account or mode",
    ExitCode.INTERRUPTED: "interrupted (SIGINT)",
    ExitCode.TERMINATED: "terminated (SIGTERM)",
}

_WORST_FIRST = (
    ExitCode.TERMINATED,
    ExitCode.INTERRUPTED,
    ExitCode.BUG,
    ExitCode.USAGE,
    ExitCode.CONFIGURATION,
    ExitCode.NOT_PERMITTED,
    ExitCode.UNAVAILABLE,
    ExitCode.LOCKED,
    ExitCode.BAD_INPUT,
    ExitCode.DIFFERENCE,
    ExitCode.PROBLEMS,
    ExitCode.OK,
)


class MeterctlError(Exception):
    """Base of everything meterctl raises on purpose.

    `message` says what is wrong and where, `hint` what to do next. Neither may hold a secret.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MeterctlError):
    """The command line asks for something that cannot be."""

    exit_code = ExitCode.USAGE


class InputError(MeterctlError):
    """Data handed to the command is malformed."""

    exit_code = ExitCode.BAD_INPUT


class UnavailableError(MeterctlError):
    """Stripe or PostgreSQL is away, or its answers cannot be trusted now. Nothing is lost; run again."""

    exit_code = ExitCode.UNAVAILABLE


class RefusedError(UnavailableError):
    """Stripe is there, but refuses this one question: others may be answered."""


class LockedError(MeterctlError):
    """Another run holds the lock of a meter."""

    exit_code = ExitCode.LOCKED


class NotPermittedError(MeterctlError):
    """PostgreSQL or Stripe refuses for lack of rights."""

    exit_code = ExitCode.NOT_PERMITTED


class ConfigurationError(MeterctlError):
    """Settings, schema, account or mode do not fit together. `problems` lists every one that was found."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, message: str, *, hint: str | None = None, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems
