"""Carry out checks in order: what fails is told, what rests on it is skipped, and all else goes on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from meterctl.core.diagnosis import Finding, Status, failed, parted, skipped
from meterctl.errors import ExitCode, MeterctlError


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One question. `needs` are names of earlier checks without which it cannot be asked; `left_out` says why not."""

    name: str
    ask: Callable[[], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    left_out: str | None = None


def diagnose(checks: Sequence[Check]) -> Iterator[tuple[str, Finding]]:
    """Yield what each check finds, with its name, as soon as it is known."""
    unproven: set[str] = set()
    for check in checks:
        for finding in _findings(check, unproven):
            if finding.status in {Status.FAIL, Status.SKIP}:
                unproven.add(check.name)
            yield check.name, finding


def _findings(check: Check, unproven: set[str]) -> Iterator[Finding]:
    lacking = [name for name in check.needs if name in unproven]
    if check.left_out or lacking:
        yield skipped(check.left_out or f"it needs {' and '.join(lacking)}, see above")
        return
    try:
        yield from check.ask()
    except MeterctlError as error:
        yield from _told(error)
    except Exception as error:  # noqa: BLE001 -- a bug in one check must not hide what the others find
        yield failed(f"a bug in meterctl: {type(error).__name__}: {error}", "please report this line", ExitCode.BUG)


def _told(error: MeterctlError) -> Iterator[Finding]:
    """An error that lists problems is one finding for each of them."""
    lines = getattr(error, "problems", ())
    yield from (failed(*parted(line), error.exit_code) for line in lines)
    if not lines:
        yield failed(error.message, error.hint, error.exit_code)
