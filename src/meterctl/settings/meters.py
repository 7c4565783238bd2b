"""What can be configured about a meter. Descriptions are the text of the configuration reference."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from meterctl.core.identifier import Column, parse_template
from meterctl.settings.model import PayerSettings, Section
from meterctl.settings.types import (
    ColumnName,
    Condition,
    EventName,
    Instant,
    PayloadKey,
    Span,
    Step,
    TableName,
    TimeZone,
    payload_key,
)

NO_EVENT_TIME_WINDOW = (
    "a meter with an event_time_window keeps only the last event of each window, so usage would be lost; "
    "remove the key, and bill on a meter without a window"
)
"""Why `event_time_window` is refused (Stripe API reference, "Billing meter", `event_time_window`)."""


class Meter(Section):
    """What all meters have in common. The table's key, `[meters.KEY]`, is Stripe's event_name unless one is given."""

    FORMULAS: ClassVar[dict[str, str]] = {}
    """Formulas this source refuses → why, and what to do instead."""

    enabled: bool = Field(default=True, description="Whether `report` collects and delivers this meter.")
    event_name: EventName = Field(description="The meter's event_name in Stripe. Default: the table's key.")
    payers: Annotated[tuple[PayerSettings, ...], Field(strict=False, min_length=1)] = Field(
        description="Where to look for the customer, in order: a list of { lookup, column }."
    )
    values: Literal["whole", "decimal"] = Field(
        default="whole",
        description='"whole": fractions and negative values of rows are refused, gauges are rounded down. "decimal" '
        "sends values exactly.",
    )
    customer_payload_key: PayloadKey = Field(
        default="stripe_customer_id", description="The meter's customer_mapping.event_payload_key in Stripe."
    )
    value_payload_key: PayloadKey = Field(
        default="value", description="The meter's value_settings.event_payload_key in Stripe."
    )

    @classmethod
    def refused_keys(cls) -> dict[str, str]:
        """Return Stripe's key that would lose usage, and the keys of other sources."""
        elsewhere = {
            key: f'belongs to source = "{source}"; remove it'
            for source, kind in METER_KINDS.items()
            for key in kind.model_fields.keys() - cls.model_fields.keys()
        }
        return {**elsewhere, "event_time_window": NO_EVENT_TIME_WINDOW}

    @field_validator("formula", mode="before", check_fields=False)
    @classmethod
    def _formula_suits_source(cls, formula: object) -> object:
        if isinstance(formula, str) and formula in cls.FORMULAS:
            raise ValueError(cls.FORMULAS[formula])
        return formula

    @field_validator("value_payload_key")
    @classmethod
    def _keys_differ(cls, key: str, info: ValidationInfo) -> str:
        if key == info.data.get("customer_payload_key"):
            raise ValueError("is the same as customer_payload_key; value and customer need a key each")
        return key


class TableMeter(Meter):
    """A meter that reads its usage in a table."""

    table: TableName = Field(description='Table or view with the usage, as "table" or "schema.table".')

    @property
    def table_parts(self) -> tuple[str, ...]:
        """The table's name as SQL identifiers: (table,) or (schema, table)."""
        return tuple(self.table.split("."))


class RowsMeter(TableMeter):
    """Usage rows, each billed once."""

    FORMULAS: ClassVar[dict[str, str]] = {
        "last": 'a meter with formula "last" bills only the latest value, so all rows but one would be lost; '
        'use "sum" or "count", or source = "gauge"',
    }

    source: Literal["rows"] = Field(description='"rows": every row of the table is billed once.')
    formula: Literal["sum", "count"] = Field(description="The meter's default_aggregation in Stripe.")
    id: ColumnName = Field(default="id", description="Primary key: bigint, uuid or text.")
    value: ColumnName | None = Field(
        default=None, validate_default=True, description='Column with the quantity; only, and always, with "sum".'
    )
    occurred_at: ColumnName = Field(
        description="Column with the instant of usage: timestamptz, or `timestamp without time zone` with `time_zone`."
    )
    reported_at: ColumnName = Field(
        default="stripe_reported_at", description="Column that meterctl stamps when Stripe has accepted the row."
    )
    identifier: str = Field(
        default="",
        validate_default=True,
        description='Template of the event\'s identifier, e.g. "{workspace_id}-{user_id}-{id}"; must differ for every '
        'row. Default: "EVENT_NAME-{id}".',
    )
    where: Condition | None = Field(default=None, description="SQL condition: only rows that meet it are billed.")
    since: Instant | None = Field(
        default=None, description="Usage before this instant is not this meter's: it is never collected."
    )
    time_zone: TimeZone | None = Field(
        default=None,
        description="Time zone of `occurred_at` and `reported_at` where they are `timestamp without time zone`, like "
        '"UTC" or "Europe/Berlin".',
    )
    payload: dict[str, ColumnName] = Field(
        default_factory=dict,
        description='More keys of the event\'s payload, each from a column: { region = "region_code" }. A row that has '
        "NULL or an empty text there is sent without the key.",
    )
    adopt_identifiers_until: Instant | None = Field(
        default=None,
        description="During the cut-over from a job that used the same identifiers: until this instant an identifier "
        "that Stripe already has counts as reported.",
    )

    @field_validator("value")
    @classmethod
    def _value_suits_formula(cls, value: str | None, info: ValidationInfo) -> str | None:
        formula = info.data.get("formula")
        if formula == "sum" and value is None:
            raise ValueError('is missing; name the column to sum, or use formula = "count"')
        if formula == "count" and value is not None:
            raise ValueError('does not belong to formula "count", which counts rows; remove it, or use formula = "sum"')
        return value

    @field_validator("identifier")
    @classmethod
    def _identifier_is_template(cls, text: str, info: ValidationInfo) -> str:
        template = text or f"{info.data.get('event_name', '')}-{{{info.data.get('id', 'id')}}}"
        parse_template(template)
        return template

    @field_validator("payload")
    @classmethod
    def _payload_keys_are_free(cls, payload: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for key in payload:
            try:
                payload_key(key)
            except ValueError as error:
                raise ValueError(f'the key "{key}" {error}') from error
            taken = [name for name in ("customer_payload_key", "value_payload_key") if info.data.get(name) == key]
            if taken:
                raise ValueError(f'the key "{key}" is the meter\'s {taken[0]}; choose another, or remove it')
        return payload

    @property
    def identifier_template(self) -> tuple[str | Column, ...]:
        """The identifier's literal texts and columns, in order."""
        return parse_template(self.identifier)


class GaugeMeter(TableMeter):
    """A level now: how many rows of a customer meet the condition."""

    FORMULAS: ClassVar[dict[str, str]] = {
        "sum": 'a level reported every step would be added up; use formula = "last"',
        "count": 'the number of reports would be billed instead of the level; use formula = "last"',
    }

    source: Literal["gauge"] = Field(description='"gauge": the number of rows now, per customer.')
    formula: Literal["last"] = Field(default="last", description="The meter's default_aggregation in Stripe.")
    where: Condition | None = Field(default=None, description="SQL condition: only rows that meet it count.")
    step: Step = Field(
        default=timedelta(hours=1),
        description='How often the level is reported, as "15m", "1h" or "1d"; the same step again is the same event.',
    )

    def step_start(self, at: datetime) -> datetime:
        """Given an aware instant, return the start of its step, counted from 00:00 UTC."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return day + (at - day) // self.step * self.step


class CounterMeter(Meter):
    """Volumes, counted in the application's own transactions and reported by the hour."""

    FORMULAS: ClassVar[dict[str, str]] = {
        "last": 'a meter with formula "last" would bill only the last hour; use formula = "sum"',
        "count": 'the number of reports would be billed instead of the volume; use formula = "sum"',
    }

    source: Literal["counter"] = Field(
        description='"counter": volumes that the application records with meterctl.record_usage(), or that a trigger '
        "counts as rows are inserted."
    )
    table: TableName | None = Field(
        default=None,
        description='Table whose inserted rows `db adopt` has a trigger count, as "table" or "schema.table"; the '
        "payers' column is the subject. Without one the application records usage itself.",
    )
    trigger_failure: Literal["fail", "warn"] = Field(
        default="fail",
        description='What happens to an INSERT that cannot be counted: "fail" refuses it, so that no usage is lost; '
        '"warn" lets it pass, uncounted, with a warning in PostgreSQL\'s log.',
    )
    keep_done: Span = Field(
        default=timedelta(days=7),
        description='How long recorded usage is kept after it was collected, as "12h" or "7d"; its sums stay in the '
        "ledger. In test mode at least 35 days.",
    )
    formula: Literal["sum"] = Field(default="sum", description="The meter's default_aggregation in Stripe.")
    window: Literal["hour"] = Field(default="hour", description="What one event covers.")

    @field_validator("payers")
    @classmethod
    def _one_subject(cls, payers: tuple[PayerSettings, ...]) -> tuple[PayerSettings, ...]:
        if len({payer.column for payer in payers}) > 1:
            raise ValueError("name different columns; a counter has one subject, so all of them need the same one")
        return payers

    @property
    def table_parts(self) -> tuple[str, ...]:
        """The table's name as SQL identifiers; empty without one."""
        return tuple(self.table.split(".")) if self.table else ()

    @property
    def subject(self) -> str:
        """The column that tells whose usage it is."""
        return self.payers[0].column


MeterSettings = RowsMeter | GaugeMeter | CounterMeter
"""A meter of any source; `source` tells them apart."""

METER_KINDS: dict[str, type[RowsMeter] | type[GaugeMeter] | type[CounterMeter]] = {
    "rows": RowsMeter,
    "gauge": GaugeMeter,
    "counter": CounterMeter,
}
"""source → its model."""
