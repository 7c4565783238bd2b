"""`webhooks verify`: whether what an endpoint received is from Stripe."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterctl.cli.options import Json, instant
from meterctl.errors import ConfigurationError, ExitCode, UsageError

if TYPE_CHECKING:
    from meterctl.core.signature import WebhookEvent, WebhookRefusedError
    from meterctl.settings import Settings

VERIFY_SCHEMA = "meterctl.webhooks_verify/1"
STDIN = "-"
TOLERANCE_S = 300
"""As in Stripe's own libraries. It bounds for how long a stolen request can be used again."""

Body = Annotated[str, typer.Argument(help="The request's body, in a file or on stdin (-).", metavar="FILE|-")]
Header = Annotated[str, typer.Option("--signature", help="Value of its Stripe-Signature header.", metavar="HEADER")]
SecretFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--secret-file",
        help="Signing secrets, instead of STRIPE_WEBHOOK_SECRET's; may be repeated.",
        metavar="FILE",
    ),
]
Tolerance = Annotated[
    int,
    typer.Option(
        "--tolerance", min=1, max=1_000_000_000, help="Seconds that the signature may be off, either way.", metavar="S"
    ),
]
At = Annotated[str | None, typer.Option("--at", help="When it was received. Default: now.", metavar="INSTANT")]


def verify_webhook(
    context: typer.Context,
    body: Body = STDIN,
    *,
    signature: Header,
    secret_files: SecretFiles = None,
    tolerance: Tolerance = TOLERANCE_S,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Check the signature of a webhook; print its event's id, type and age, or the reason why not (exit 65)."""
    from meterctl.cli.wiring import open_settings
    from meterctl.core.signature import WebhookRefusedError, parse_event, verify

    received_at = instant(at) if at else datetime.now(UTC)
    settings = open_settings(context, require_database=False, webhook_secret_files=secret_files or ())
    received = _read(body)
    try:
        signed_at = verify(
            received, signature, _secrets(settings), now=received_at, tolerance=timedelta(seconds=tolerance)
        )
        event = parse_event(received)
    except WebhookRefusedError as refusal:
        if as_json:
            print(json.dumps(_refused(refusal)))
        raise
    print(json.dumps(_genuine(event, signed_at, received_at)) if as_json else _line(event, received_at - signed_at))


def _read(name: str) -> bytes:
    """Return the very bytes. Raises UsageError."""
    try:
        with open(0 if name == STDIN else name, "rb", closefd=name != STDIN) as stream:
            return stream.read()
    except OSError as error:
        shown = "stdin" if name == STDIN else name
        raise UsageError(f"{shown} cannot be read: {error.strerror}", hint="name the file with the body") from error


def _secrets(settings: "Settings") -> list[str]:
    if not settings.stripe.webhook_secrets:
        raise ConfigurationError(
            "there is no signing secret to verify with",
            hint="set STRIPE_WEBHOOK_SECRET or STRIPE_WEBHOOK_SECRET_FILE, or give --secret-file",
        )
    return [secret.get_secret_value() for secret in settings.stripe.webhook_secrets]


def _line(event: "WebhookEvent", age: timedelta) -> str:
    from meterctl.render.values import printable, span

    when = f"{span(-age)} ahead" if age < timedelta(0) else f"{span(age)} ago"
    return f"{printable(event.id)} {printable(event.type)}, signed {when}"


def _genuine(event: "WebhookEvent", signed_at: datetime, received_at: datetime) -> dict[str, Any]:
    from meterctl.render.values import iso

    return {
        "schema": VERIFY_SCHEMA,
        "exit_code": int(ExitCode.OK),
        "id": event.id,
        "type": event.type,
        "object": event.object,
        "signed_at": iso(signed_at),
        "age_s": (received_at - signed_at) // timedelta(seconds=1),
        "refused": None,
    }


def _refused(refusal: "WebhookRefusedError") -> dict[str, Any]:
    """Nothing of a body that nobody vouches for is shown."""
    return {
        "schema": VERIFY_SCHEMA,
        "exit_code": int(refusal.exit_code),
        **dict.fromkeys(("id", "type", "object", "signed_at", "age_s")),
        "refused": {"code": refusal.code, "message": refusal.message},
    }
