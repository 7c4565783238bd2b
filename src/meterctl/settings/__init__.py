"""Settings: read once, checked whole, frozen. See `load` for precedence and `model`, `meters` for what can be set."""

from meterctl.settings.database_url import database_passwords, database_url_faults, describe_database
from meterctl.settings.document import SYSTEM_CONFIG_FILE
from meterctl.settings.load import Settings, known_secrets, load_settings
from meterctl.settings.meters import CounterMeter, GaugeMeter, MeterSettings, RowsMeter
from meterctl.settings.model import LookupSettings, PayerSettings, StripeSettings
from meterctl.settings.shipped import shipped_text

__all__ = [
    "SYSTEM_CONFIG_FILE",
    "CounterMeter",
    "GaugeMeter",
    "LookupSettings",
    "MeterSettings",
    "PayerSettings",
    "RowsMeter",
    "Settings",
    "StripeSettings",
    "database_passwords",
    "database_url_faults",
    "describe_database",
    "known_secrets",
    "load_settings",
    "shipped_text",
]
