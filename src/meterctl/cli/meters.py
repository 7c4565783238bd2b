"""`meters check`: the configured meters beside Stripe's."""

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from meterctl.cli.options import Json, Live, NoColor, Quiet
from meterctl.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterctl.actions.check_meters import CheckedMeter
    from meterctl.settings import Settings

app = typer.Typer(help="Look at Stripe's meters.", no_args_is_help=True)

SCHEMA = "meterctl.meters_check/1"


@app.command("check")
def check(
    context: typer.Context,
    *,
    live: Live = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Check that each enabled meter is in Stripe, active, of the same formula and payload keys, and priced."""
    from meterctl.cli.report import guard_mode
    from meterctl.cli.wiring import open_settings
    from meterctl.core.diagnosis import verdict

    settings = open_settings(context, live=live, quiet=quiet, no_color=no_color, require_database=False)
    guard_mode(settings, require_stripe=True)
    meters = _checked(settings)
    code = verdict(finding for meter in meters for finding in meter.findings)
    if as_json:
        print(json.dumps(_document(meters, code, settings.stripe.mode)))
    elif not (quiet and code is ExitCode.OK):
        _show(meters, colour=not no_color)
    raise typer.Exit(code)


def _checked(settings: "Settings") -> "list[CheckedMeter]":
    from meterctl.actions.check_meters import check_meters
    from meterctl.cli.wiring import redacted
    from meterctl.stripe_api.account import key_account
    from meterctl.stripe_api.client import stripe_client
    from meterctl.stripe_api.meters import StripeMeters

    if not settings.enabled_meters:
        raise ConfigurationError("no meter is enabled", hint="enable one under [meters.…] in the configuration")
    client = stripe_client(settings.stripe, connections_max=1)
    if settings.stripe.account is not None:
        key_account(client, settings.stripe)  # another account's meters would prove nothing
    livemode = settings.stripe.mode == "live"
    checked = check_meters(settings.enabled_meters, StripeMeters(client), livemode=livemode)
    return [replace(meter, findings=tuple(map(redacted, meter.findings))) for meter in checked]


def _show(meters: "Sequence[CheckedMeter]", *, colour: bool) -> None:
    from meterctl.render.diagnosis import shown_findings

    findings = [(meter.event_name, finding) for meter in meters for finding in meter.findings]
    print(shown_findings("meter", findings, console=sys.stdout.isatty(), colour=colour))


def _document(meters: "Sequence[CheckedMeter]", code: ExitCode, mode: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "exit_code": int(code),
        "mode": mode,
        "meters": [_meter_dict(meter) for meter in meters],
    }


def _meter_dict(meter: "CheckedMeter") -> dict[str, Any]:
    from meterctl.render.diagnosis import finding_dicts

    found = meter.found
    return {
        "key": meter.key,
        "event_name": meter.event_name,
        "source": meter.source,
        "id": found.id if found else None,
        "active": found.active if found else None,
        "formula": found.formula if found else None,
        "customer_payload_key": found.customer_key if found else None,
        "value_payload_key": found.value_key if found else None,
        "event_time_window": found.event_time_window if found else None,
        "priced": meter.is_priced,
        "findings": finding_dicts(meter.findings),
    }
