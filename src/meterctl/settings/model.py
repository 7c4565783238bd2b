"""What can be configured about Stripe and about who pays. Descriptions are the text of the configuration reference."""

import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from meterctl.settings.types import AccountId, ColumnName, TableName, TimeZone

INVOICE_GRACE_MAX_H = 72
"""Longest invoice finalisation grace an account can choose (Stripe docs, "Configure grace period")."""

if TYPE_CHECKING:
    from pydantic.config import JsonDict

_KEY_MODE = re.compile(r"(?:sk|rk)_(test|live)_")


class Section(BaseModel):
    """A table of the configuration file. Unknown keys and wrong types are refused; values never stand in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    @classmethod
    def refused_keys(cls) -> dict[str, str]:
        """Keys that people will try and that cannot be → why, and what to do instead."""
        return {}


def from_environment(name: str) -> "JsonDict":
    """Mark a field as one that only the environment can give, under this name: `Field(json_schema_extra=…)`."""
    return {"environment": name}


def environment_fields(kind: type[Section]) -> dict[str, str]:
    """Given a section, return those of its fields that only the environment can give: field → variable."""
    extras = {name: field.json_schema_extra for name, field in kind.model_fields.items()}
    return {name: str(extra["environment"]) for name, extra in extras.items() if isinstance(extra, dict)}


class StripeSettings(Section):
    """The Stripe account, and how to reach it."""

    mode: Literal["test", "live"] = Field(
        default="test",
        description='"live" sends real usage. It must agree with the key, the ledger and what Stripe answers.',
    )
    account: AccountId | None = Field(
        default=None, description='The account\'s id ("acct_…"); any other account is refused. Default: not checked.'
    )
    invoice_grace_h: int = Field(
        default=1,
        ge=0,
        le=INVOICE_GRACE_MAX_H,
        description="Hours after a billing period's end in which usage still reaches its invoice, as set in Stripe.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Secret or restricted key. Without one nothing is sent: the run says so and ends well.",
        json_schema_extra=from_environment("STRIPE_SECRET_KEY"),
    )
    webhook_secrets: tuple[SecretStr, ...] = Field(
        default=(),
        description="Signing secrets of webhook endpoints, separated by spaces or commas while one replaces another.",
        json_schema_extra=from_environment("STRIPE_WEBHOOK_SECRET"),
    )
    api_base: str | None = Field(
        default=None,
        description="Address of a local Stripe on loopback, for test-mode keys only. Default: Stripe's own.",
        json_schema_extra=from_environment("METERCTL_STRIPE_API_BASE"),
    )
    meter_events_base: str | None = Field(
        default=None,
        description="The same for the meter event stream.",
        json_schema_extra=from_environment("METERCTL_STRIPE_METER_EVENTS_BASE"),
    )

    @classmethod
    def refused_keys(cls) -> dict[str, str]:
        """Return what only the environment can give."""
        return {
            field: f"does not belong in a file; set {name} in the environment"
            for field, name in environment_fields(cls).items()
        }

    @property
    def key_mode(self) -> Literal["test", "live"] | None:
        """The mode the key belongs to, by its prefix; None without a key."""
        match = _KEY_MODE.match(self.api_key.get_secret_value()) if self.api_key else None
        if match is None:
            return None
        return "live" if match[1] == "live" else "test"


class LookupSettings(Section):
    """A table that says which Stripe customer pays for a subject, and since when."""

    table: TableName = Field(description='Table or view, as "table" or "schema.table".')
    subject: ColumnName = Field(description="Column that equals the usage row's column named in the meter's `payers`.")
    customer: ColumnName = Field(description="Column with the Stripe customer id.")
    id: ColumnName | None = Field(
        default=None, description="Column that breaks the tie between subscriptions that started together: lowest wins."
    )
    started_at: ColumnName | None = Field(
        default=None, description="Column with the subscription's start; NULL there means always."
    )
    ended_at: ColumnName | None = Field(
        default=None, description="Column with the subscription's end; NULL there means not ended."
    )
    status: ColumnName | None = Field(
        default=None,
        description="Column with the subscription's status; used where `ended_at` is not given: active, trialing and "
        "past_due pay.",
    )
    period_start: ColumnName | None = Field(
        default=None, description="Column with the start of the current billing period; tells late usage."
    )
    period_end: ColumnName | None = Field(
        default=None, description="Column with the end of the current billing period; tells late usage."
    )
    time_zone: TimeZone | None = Field(
        default=None,
        description='Time zone of those columns that are `timestamp without time zone`, like "UTC" or "Europe/Berlin".',
    )

    @property
    def table_parts(self) -> tuple[str, ...]:
        """The table's name as SQL identifiers: (table,) or (schema, table)."""
        return tuple(self.table.split("."))


class PayerSettings(Section):
    """One way from a usage row to its customer; a meter tries its payers in order."""

    lookup: str = Field(description="Name of a [lookups.…] table.")
    column: ColumnName = Field(description="Column of the usage row that the lookup's `subject` equals.")
