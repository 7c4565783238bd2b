"""`db …`: prepare the database, prove that it is, leave test mode, and bring a restored or copied one in order."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from meterctl.cli.options import Confirm, Json, Quiet, Yes, instant
from meterctl.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterctl.core.diagnosis import Finding
    from meterctl.postgres.adopt import Adoption

app = typer.Typer(help="Prepare the database, and check that it is ready.", no_args_is_help=True)

Print = Annotated[bool, typer.Option("--print", help="Print the SQL for a DBA; change nothing.")]
Table = Annotated[str | None, typer.Argument(help="Only this table; else those of all enabled meters, and of events.")]
CutOver = Annotated[
    str | None,
    typer.Option(
        "--cut-over",
        help="Usage before this instant was reported by a predecessor; only while the column is missing.",
        metavar="INSTANT",
    ),
]


Since = Annotated[
    str, typer.Option("--since", help="The instant that the database was set back to.", metavar="INSTANT")
]
Resend = Annotated[
    bool, typer.Option("--resend", help="Lost less than 22 hours ago: ask under the same identifiers, not by totals.")
]


@app.command("migrate")
def migrate(context: typer.Context, *, print_sql: Print = False, quiet: Quiet = False) -> None:
    """Create or upgrade the schema meterctl; safe when several start at once."""
    from meterctl.postgres import migrate as schema

    if print_sql:
        print("\n".join(schema.script()), end="")
        return
    from meterctl.cli.wiring import open_settings

    applied = schema.migrate(open_settings(context).database_url.get_secret_value())
    if not quiet:
        print("\n".join(f"applied {name}" for name in applied) or "up to date")


@app.command("check")
def check(context: typer.Context, *, as_json: Json = False, quiet: Quiet = False) -> None:
    """Check schema, tables, columns, types, privileges and indexes; say what to do about each."""
    from meterctl.cli.wiring import open_settings
    from meterctl.postgres.connect import connect
    from meterctl.postgres.inspection import inspect_database

    settings = open_settings(context)
    with connect(settings.database_url.get_secret_value()) as connection:
        findings = inspect_database(connection, settings)
    code = _exit_code(findings)
    if as_json:
        print(json.dumps(_document(findings, code), indent=2, ensure_ascii=False))
    elif not (quiet and code == ExitCode.OK):
        print("\n".join(f"{finding.status:<5} {finding.line}" for finding in findings))
    raise typer.Exit(code)


def _exit_code(findings: "Sequence[Finding]") -> ExitCode:
    from meterctl.core.diagnosis import Status, verdict

    return verdict(finding for finding in findings if finding.status is Status.FAIL)


def _document(findings: "Sequence[Finding]", code: ExitCode) -> dict[str, object]:
    checks = [{"status": finding.status.lower(), "message": finding.line} for finding in findings]
    return {"schema": "meterctl.db_check/1", "exit_code": int(code), "checks": checks}


@app.command("adopt")
def adopt(
    context: typer.Context,
    table: Table = None,
    *,
    cut_over: CutOver = None,
    print_sql: Print = False,
    yes: Yes = False,
) -> None:
    """Prepare tables: columns that meterctl writes, their indexes, the trigger that counts; shows, then asks."""
    from meterctl.cli.wiring import confirmed, open_settings
    from meterctl.postgres.adopt import plan_adoption
    from meterctl.postgres.adopting import carry_out, require_rights
    from meterctl.postgres.connect import connect
    from meterctl.postgres.counting import plan_counting
    from meterctl.postgres.wanted import adoptable_meters, meters_of_table
    from meterctl.postgres.webhook_adopt import adoptable_tables, plan_webhooks
    from meterctl.settings import CounterMeter, RowsMeter

    since = instant(cut_over) if cut_over is not None else None
    settings = open_settings(context)
    others = adoptable_tables(settings, table)
    if table is not None:
        meters = meters_of_table(settings, table, adoptable_tables(settings))
    else:
        meters = adoptable_meters(settings)
    if not meters and not others:
        raise ConfigurationError(
            "no meter with a table to adopt is enabled", hint="enable one under [meters.…] in the configuration"
        )
    rows = {key: meter for key, meter in meters.items() if isinstance(meter, RowsMeter)}
    counters = {key: meter for key, meter in meters.items() if isinstance(meter, CounterMeter)}
    conninfo = settings.database_url.get_secret_value()
    with connect(conninfo) as connection:

        def plan() -> "Adoption":
            counting = plan_counting(connection, settings, counters)
            adoption = plan_adoption(connection, settings, rows, cut_over=since) + counting
            return adoption + plan_webhooks(connection, settings, others)

        adoption = plan()
        _show(adoption)
        if print_sql or not adoption.steps:
            return
        require_rights(adoption)
        if not confirmed("Do this now?", yes=yes):
            print("nothing was done", file=sys.stderr)
            return
        carry_out(connection, conninfo, adoption, plan)
    print("done", file=sys.stderr)


@app.command("forget-test")
def forget_test(context: typer.Context, *, yes: Yes = False, as_json: Json = False) -> None:
    """Leave test mode: remove what test runs recorded, and their stamps on usage rows; without --yes only shows."""
    from meterctl.cli.db_forget import forget_test_ledger
    from meterctl.cli.wiring import open_settings

    raise typer.Exit(forget_test_ledger(open_settings(context), yes=yes, as_json=as_json))


@app.command("recover")
def recover(
    context: typer.Context,
    *,
    since: Since,
    resend: Resend = False,
    yes: Yes = False,
    confirm: Confirm = None,
    as_json: Json = False,
) -> None:
    """After a restore or a failover: doubt all that may have been sent since, for Stripe's totals to settle."""
    from meterctl.cli.db_recover import Asked
    from meterctl.cli.db_recover import recover as recover_ledger
    from meterctl.cli.wiring import open_settings

    asked = Asked(since=instant(since), resend=resend, yes=yes, confirm=confirm, as_json=as_json)
    raise typer.Exit(recover_ledger(open_settings(context), asked))


@app.command("adopt-copy")
def adopt_copy(context: typer.Context, *, yes: Yes = False, confirm: Confirm = None, as_json: Json = False) -> None:
    """On a copy: close what is open, which the original bills, and make the ledger nobody's."""
    from meterctl.cli.db_recover import adopt
    from meterctl.cli.wiring import open_settings

    raise typer.Exit(adopt(open_settings(context), yes=yes, confirm=confirm, as_json=as_json))


def _show(adoption: "Adoption") -> None:
    for note in adoption.notes:
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(step.text() for step in adoption.steps) or "-- nothing to do", flush=True)
