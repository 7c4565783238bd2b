"""The command line: a file per group, which parses, wires, calls one action, renders and gives the exit code."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from meterctl import __version__
from meterctl.cli import (
    backfill,
    config,
    db,
    doctor,
    ledger,
    meters,
    reconcile,
    report,
    sandbox,
    settle,
    summary,
    webhooks,
)
from meterctl.cli.streams import prepare_streams
from meterctl.errors import ExitCode

app = typer.Typer(
    name="meterctl",
    help="Report metered usage from PostgreSQL to Stripe Billing Meters: every unit exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:  # noqa: FBT001 -- Typer's signature of an eager option
    if wanted:
        typer.echo(f"meterctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    config_file: Annotated[
        Path | None, typer.Option("-c", "--config", help="Configuration file (TOML).", metavar="FILE")
    ] = None,
    *,
    version: Annotated[  # noqa: ARG001 -- eager, answered by its callback
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    prepare_streams()
    context.obj = config_file
    context.with_resource(_terminable())


@contextmanager
def _terminable() -> Iterator[None]:
    """Until a command has something better, let SIGTERM unwind it and end with 143.

    In a container the command may be process 1, to which the kernel delivers no signal that has no handler
    (pid_namespaces(7)): a job that waits for a server or for its next attempt could not be stopped.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(ExitCode.TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


report.register(app)
backfill.register(app)
settle.register(app)
reconcile.register(app)
summary.register(app)
doctor.register(app)
app.add_typer(ledger.app, name="ledger")
app.add_typer(meters.app, name="meters")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(db.app, name="db")
app.add_typer(config.app, name="config")
app.add_typer(sandbox.app, name="sandbox")
sandbox.register(app)
