"""What can be configured about Stripe's events. Descriptions are the text of the configuration reference."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from meterctl.core.subscription_events import SUBSCRIPTION_TYPES
from meterctl.settings.model import Section
from meterctl.settings.types import ColumnName, TableName

EventType = Literal[
    "checkout.session.completed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.payment_failed",
    "v1.billing.meter.error_report_triggered",
    "v1.billing.meter.no_meter_found",
]
"""The types of events that meterctl can act on."""


class SubscriptionsSettings(Section):
    """The table that the events of subscriptions keep true."""

    table: TableName = Field(description='Table or updatable view, as "table" or "schema.table".')
    subscription: ColumnName = Field(description="Column with the Stripe subscription id: a row is known by it.")
    customer: ColumnName = Field(description="Column with the Stripe customer id.")
    user: ColumnName | None = Field(default=None, description="Column with the user who subscribed.")
    organization: ColumnName | None = Field(default=None, description="Column with the organization that subscribed.")
    status: ColumnName | None = Field(default=None, description="Column with the subscription's status in Stripe.")
    started_at: ColumnName | None = Field(default=None, description="Column with the subscription's start.")
    ended_at: ColumnName | None = Field(default=None, description="Column with the subscription's end.")
    period_start: ColumnName | None = Field(
        default=None, description="Column with the start of the current billing period."
    )
    period_end: ColumnName | None = Field(
        default=None, description="Column with the end of the current billing period."
    )
    event_at: ColumnName | None = Field(
        default=None,
        description="Column with the instant of the newest event of the subscription itself that the row holds. What "
        "is newer there is never overwritten, whoever wrote it.",
    )

    @property
    def table_parts(self) -> tuple[str, ...]:
        """The table's name as SQL identifiers: (table,) or (schema, table)."""
        return tuple(self.table.split("."))


class WebhookSettings(Section):
    """What meterctl does about Stripe's events."""

    handle: tuple[EventType, ...] = Field(
        default=(),
        strict=False,
        description="Types of events that are pulled and acted on. Leave out what your application does by itself.",
    )
    events: TableName | None = Field(
        default=None,
        description="A table of your own, in which your endpoint stores events, instead of meterctl.stripe_events. It "
        "has that table's columns.",
    )
    subscriptions: SubscriptionsSettings | None = Field(
        default=None, validate_default=True, description="The table that the events of subscriptions keep true."
    )

    @field_validator("handle")
    @classmethod
    def _each_once(cls, handle: tuple[EventType, ...]) -> tuple[EventType, ...]:
        twice = next((kind for kind in handle if handle.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f'names "{twice}" more than once; remove one')
        return handle

    @field_validator("subscriptions")
    @classmethod
    def _there_is_a_table(
        cls, subscriptions: SubscriptionsSettings | None, info: ValidationInfo
    ) -> SubscriptionsSettings | None:
        handled = sorted(SUBSCRIPTION_TYPES.intersection(info.data.get("handle", ())))
        if subscriptions is None and handled:
            raise ValueError(
                f"is missing; write a [webhooks.subscriptions] table, or leave {handled[0]} out of webhooks.handle"
            )
        return subscriptions

    @property
    def kept_table(self) -> SubscriptionsSettings | None:
        """The table of subscriptions, if any event is handled that keeps it true."""
        return self.subscriptions if SUBSCRIPTION_TYPES.intersection(self.handle) else None

    @property
    def events_parts(self) -> tuple[str, ...] | None:
        """The own table's name as SQL identifiers: (table,) or (schema, table)."""
        return tuple(self.events.split(".")) if self.events else None
