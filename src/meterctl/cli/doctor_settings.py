"""The settings as the doctor reads them: what is wrong with them is a finding, and what is sound is gone on with."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from meterctl.cli.wiring import mode_flags
from meterctl.core.diagnosis import Finding, failed, parted, passed, warned
from meterctl.errors import ConfigurationError
from meterctl.logs import configure_logs
from meterctl.settings import Settings, known_secrets, load_settings

SECRETS = {
    "database_url": "DATABASE_URL",
    "stripe.api_key": "STRIPE_SECRET_KEY",
    "stripe.webhook_secrets": "STRIPE_WEBHOOK_SECRET",
}
"""Keys whose origin tells where a secret is kept → what it is called."""


LEFT_OUT: tuple[tuple[str, ...], ...] = (
    (),
    ("DATABASE_URL",),
    ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"),
    ("DATABASE_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"),
)
"""Secrets to do without, tried in turn: one that is at fault must not hide the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is wrong with the settings, and the settings without the secrets that are `left_out` for their faults."""

    settings: Settings | None
    faults: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def configuration(self) -> Iterator[Finding]:
        """Tell what is wrong with the configuration."""
        yield from (failed(*parted(line)) for line in self.faults)
        if self.settings is None:
            return
        of_secrets = set(_secret_warnings(self.settings))
        yield from (warned(*parted(line)) for line in self.settings.warnings if line not in of_secrets)
        if self.settings.enabled_meters:
            yield passed(f"{self.settings.where('meters')}: {', '.join(self.settings.enabled_meters)}")
        else:
            yield failed("no meter is enabled", "enable one under [meters.…] in the configuration")

    def secrets(self) -> Iterator[Finding]:
        """Tell where each secret is kept, and who else can read it."""
        assert self.settings is not None  # noqa: S101 -- asked only after a sound configuration
        warnings = _secret_warnings(self.settings)
        yield from (warned(*parted(line)) for line in warnings)
        for key, name in SECRETS.items():
            where = self.settings.where(key)
            if _is_given(self.settings, key) and not any(line.startswith(f"{where}: ") for line in warnings):
                yield passed(f"{name}: from {where}")


def _secret_warnings(settings: Settings) -> list[str]:
    places = tuple(f"{settings.where(key)}: " for key in SECRETS if _is_given(settings, key))
    return [line for line in settings.warnings if line.startswith(places)]


def _is_given(settings: Settings, key: str) -> bool:
    return bool(
        {
            "database_url": settings.database_url.get_secret_value(),
            "stripe.api_key": settings.stripe.api_key,
            "stripe.webhook_secrets": settings.stripe.webhook_secrets,
        }[key]
    )


def read(context: typer.Context, *, live: bool, no_color: bool) -> Reading:
    """Read the settings, and set up the logs so that no secret passes them."""
    reading = _read(context.find_root().obj, mode_flags(live=live))
    secrets = reading.settings.secrets if reading.settings else ()
    configure_logs(
        sys.stderr,
        level="error",
        console=sys.stderr.isatty(),
        secrets=(*secrets, *known_secrets(os.environ)),
        colour=not no_color,
    )
    return reading


def _read(file: Path | None, flags: Mapping[str, object]) -> Reading:
    faults: tuple[str, ...] = ()
    for left_out in LEFT_OUT:
        environ = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in left_out}
        try:
            settings = load_settings(
                config_file=file, environ=environ, flags=flags, require_database="DATABASE_URL" not in left_out
            )
        except ConfigurationError as error:
            faults = faults or error.problems
        else:
            return Reading(settings=settings, faults=faults, left_out=left_out)
    return Reading(settings=None, faults=faults)
