"""What commands share before they act: settings, logs, the database, and asking a person."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from meterctl.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from meterctl.core.diagnosis import Finding
    from meterctl.postgres.connect import Connection
    from meterctl.settings import Settings


def mode_flags(*, live: bool) -> dict[str, object]:
    """Return what `--live` says, as the settings take it."""
    return {"stripe.mode": "live"} if live else {}


def open_settings(
    context: typer.Context,
    *,
    live: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    no_color: bool = False,
    require_database: bool = True,
    file: "Path | None" = None,
    webhook_secret_files: "Sequence[Path]" = (),
) -> "Settings":
    """Read the settings (flag > environment > file > default) and set up the logs so that no secret passes them.

    `file` is read instead of the one that `-c` names, `webhook_secret_files` instead of STRIPE_WEBHOOK_SECRET.
    """
    from meterctl.logs import configure_logs, get_logger
    from meterctl.settings import load_settings

    settings = load_settings(
        config_file=file or context.find_root().obj,
        environ=os.environ,
        flags=mode_flags(live=live),
        require_database=require_database,
        webhook_secret_files=webhook_secret_files,
    )
    configure_logs(
        sys.stderr,
        level=_log_level(verbose=verbose, quiet=quiet, terminal=sys.stderr.isatty()),
        console=sys.stderr.isatty(),
        secrets=settings.secrets,
        colour=not no_color,
    )
    for warning in settings.warnings:
        get_logger().warning("settings", warning=warning)
    return settings


def _log_level(*, verbose: bool, quiet: bool, terminal: bool) -> str:
    """Without a terminal the log is the record of the run; on one, tables say it. Quiet keeps what went wrong."""
    if verbose:
        return "debug"
    if quiet:
        return "error"
    return "warning" if terminal else "info"


@contextmanager
def open_database(settings: "Settings") -> "Iterator[Connection]":
    """Open the database and check that its schema is ours. Raises the MeterctlError that fits."""
    from meterctl.postgres.connect import connect
    from meterctl.postgres.migrate import require_schema
    from meterctl.postgres.runs import run_label

    with connect(settings.database_url.get_secret_value(), application_name=run_label()) as connection:
        require_schema(connection)
        yield connection


def redacted(finding: "Finding") -> "Finding":
    """Return a finding that no secret stands in, whoever's words it repeats."""
    from meterctl.logs import redact

    remedy = finding.remedy and redact(finding.remedy)
    return replace(finding, message=redact(finding.message), remedy=remedy)


def confirmed_for(account: str, question: str, *, livemode: bool, yes: bool, confirm: str | None) -> bool:
    """Ask as `confirmed` does; in live mode the account must be typed, or given with `--yes --confirm`."""
    if not livemode:
        return confirmed(question, yes=yes)
    if yes and confirm != account:
        raise UsageError("in live mode --yes is not enough", hint=f"add --confirm {account}")
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return confirmed(question, yes=yes)
    with _interruptible():
        return str(typer.prompt(f"{question} Type the account's id to do it", err=True)) == account


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask on a terminal; without one `--yes` must have been given. Raises UsageError where nobody can be asked."""
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "this asks first, and there is no terminal to ask on", hint="look at what it shows, then add --yes"
        )
    with _interruptible():
        return typer.confirm(question, err=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C at a question be an interruption; Typer would end it with 1, which means a bug."""
    try:
        yield
    except typer.Abort:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
