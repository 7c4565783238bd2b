"""`reconcile`: the ledger's totals beside Stripe's."""

from typing import Annotated

import typer

from meterctl.cli.options import Json, Live, Meters, NoColor, Quiet, Verbose, instant

Customers = Annotated[
    list[str] | None,
    typer.Option("--customer", help="Only this Stripe customer; may be repeated.", metavar="ID"),
]
Since = Annotated[str | None, typer.Option("--since", help="From this whole minute on; 35 days ago by default.")]
Until = Annotated[str | None, typer.Option("--until", help="Up to this whole minute; 75 min ago by default.")]
ReadsMax = Annotated[int, typer.Option("--max-reads", min=1, help="Totals to read at most; Stripe allows few.")]


def reconcile(  # noqa: PLR0913 -- one parameter for each option; Typer's way
    context: typer.Context,
    *,
    meter: Meters = None,
    customer: Customers = None,
    since: Since = None,
    until: Until = None,
    reads_max: ReadsMax = 300,
    live: Live = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_color: NoColor = False,
) -> None:
    """Compare what is accepted with Stripe's totals, by customer and UTC day; exit 11 on an unexplained difference.

    A day that differs is narrowed to its hours and minutes, the cause is named where it can be known, and the command
    that mends it. No event is changed. `summary` then says up to where everything is proven equal.
    """
    from meterctl.cli.reconcile_run import Asked, compare_with_stripe
    from meterctl.cli.report import guard_mode
    from meterctl.cli.wiring import open_settings

    asked = Asked(
        meters=tuple(meter or ()),
        customers=tuple(dict.fromkeys(customer or ())),
        since=instant(since) if since else None,
        until=instant(until) if until else None,
        reads_max=reads_max,
        as_json=as_json,
        quiet=quiet,
        colour=not no_color,
    )
    settings = open_settings(context, live=live, verbose=verbose, quiet=quiet, no_color=no_color)
    guard_mode(settings, require_stripe=True)
    raise typer.Exit(compare_with_stripe(settings, asked))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("reconcile")(reconcile)
