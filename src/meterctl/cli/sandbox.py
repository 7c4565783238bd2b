"""`sandbox up` and `demo`: meterctl without an account, on a real PostgreSQL and a local Stripe."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from meterctl.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from meterctl.sandbox.company import Company

app = typer.Typer(help="A local PostgreSQL and a local Stripe to try things on.", no_args_is_help=True)

RUN_ENDS_WELL = {ExitCode.OK, ExitCode.PROBLEMS}


def register(root: typer.Typer) -> None:
    """Add `demo` to the program."""
    root.command("demo", help="Run the nightly job on sample data, twice, and compare with Stripe's totals.")(demo)


@app.command("up")
def up() -> None:
    """Start both in the foreground, print how to use them, and take everything down on Ctrl-C."""
    with _ending_well(ExitCode.OK), _company(tcp=True) as company:
        _say("# A PostgreSQL with sample data and a local Stripe are up. In another terminal:")
        for name, value in company.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        _say("# Then: meterctl report --dry-run, meterctl report, meterctl summary")
        _say(f"# The local Stripe's controls: curl {company.stripe.url}/_sandbox/    Stop: Ctrl-C")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


def demo() -> None:
    """Show the nightly job end to end; exit 0 only if every unit was billed once."""
    with _ending_well(ExitCode.INTERRUPTED), _company(tcp=False) as company:
        _heading("1. What a night would do: meterctl report --dry-run")
        _meterctl(company, "report", "--dry-run")
        _heading("2. The night: meterctl report")
        _meterctl(company, "report")
        _heading("3. Our books beside Stripe's own totals (units)")
        exact = _compare(company)
        _heading("4. The next night: meterctl report")
        _meterctl(company, "report")
        exact = _compare(company) and exact
        _heading("5. What is left for a person: meterctl summary")
        _meterctl(company, "summary")
    _conclude(exact=exact)


def _conclude(*, exact: bool) -> None:
    if not exact:
        _say("The totals differ. This is a bug; please report it with the output above.")
        raise typer.Exit(ExitCode.BUG)
    print("\nEvery unit was billed once; running again billed nothing twice.")
    print("Next: `meterctl sandbox up` keeps both servers running for you to try on;")
    print("      `meterctl ledger list --state rejected` there shows the two rows that need a person.")


def _compare(company: "Company") -> bool:
    from meterctl.render.tables import table

    rows = company.comparison()
    print(
        table(
            ["meter", "customer", "our tables", "ledger", "Stripe", ""],
            [[m, c, f"{u:f}", f"{a:f}", f"{t:f}", "equal" if u == a == t else "DIFFERENT"] for m, c, u, a, t in rows],
            console=sys.stdout.isatty(),
        )
    )
    return bool(rows) and all(units == accepted == total for *_, units, accepted, total in rows)


def _meterctl(company: "Company", *arguments: str) -> None:
    """Run the command as a user would; its exit code is part of what is shown."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("METERCTL_STRIPE", "STRIPE_", "PG"))}
    command = [sys.executable, "-m", "meterctl", *arguments]
    sys.stdout.flush()
    code = subprocess.run(command, env=environment | company.environment, check=False).returncode  # noqa: S603 -- ourselves
    sys.stdout.flush()
    known = code in ExitCode._value2member_map_
    _say(f"exit {code}: {ExitCode(code).meaning if known else 'killed'}")
    if code not in RUN_ENDS_WELL:
        raise typer.Exit(ExitCode.BUG)


@contextmanager
def _company(*, tcp: bool) -> "Iterator[Company]":
    try:
        from meterctl.sandbox.company import running_company
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the sandbox needs the package {error.name}", hint="install it: pip install 'meterctl[sandbox]'"
        ) from error
    with running_company(tcp=tcp) as company:
        yield company


@contextmanager
def _ending_well(code: ExitCode) -> Iterator[None]:
    """On Ctrl-C and SIGTERM unwind, so that both servers go, and leave with `code` without a word."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _heading(text: str) -> None:
    print(f"\n{text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
