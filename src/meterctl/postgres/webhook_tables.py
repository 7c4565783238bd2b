"""What Stripe's events ask of the application's tables: one that they keep true, and one they may be kept in."""

from collections.abc import Iterator

from meterctl.postgres.wanted import Kind, WantedColumn, WantedTable
from meterctl.settings import Settings
from meterctl.settings.shipped import SHIPPED
from meterctl.settings.webhooks import SubscriptionsSettings

SUBSCRIPTIONS, EVENTS = "webhooks.subscriptions", "webhooks.events"
"""The keys of the configuration that name them."""

EVENT_ID = "event_id"
"""The column by which an event is known."""

_INSTANTS = {"started_at", "ended_at", "period_start", "period_end", "event_at"}


def wanted_by_webhooks(settings: Settings) -> tuple[WantedTable, ...]:
    """Return what the configured handling of events wants of tables, if anything."""
    kept, events = settings.webhooks.kept_table, settings.webhooks.events
    return (
        *((wanted_of_subscriptions(kept),) if kept is not None else ()),
        *((wanted_of_events(events),) if events is not None else ()),
    )


def is_shipped(settings: Settings, wanted: WantedTable) -> bool:
    """Whether only the shipped configuration wants it, so that perhaps nobody means to handle events."""
    return all(settings.origins.source(key) == SHIPPED for key in (wanted.key, "webhooks.handle"))


def wanted_of_subscriptions(settings: SubscriptionsSettings) -> WantedTable:
    """Return what keeping a table of subscriptions true wants of it."""
    keys = (key for key in SubscriptionsSettings.model_fields if key != "table")
    columns = [
        WantedColumn(
            key=f"{SUBSCRIPTIONS}.{key}",
            name=name,
            kind=Kind.ZONED if key in _INSTANTS else Kind.ANY,
            updated=True,
            inserted=True,
            added_as="timestamptz" if key == "event_at" else None,
        )
        for key in keys
        if (name := getattr(settings, key)) is not None
    ]
    return WantedTable(section=SUBSCRIPTIONS, name=settings.table, columns=tuple(columns))


def wanted_of_events(table: str) -> WantedTable:
    """Return what keeping events in the application's own table wants of it: the columns of meterctl.stripe_events."""
    return WantedTable(section=EVENTS, name=table, columns=tuple(_event_columns()), is_key=True)


def _event_columns() -> Iterator[WantedColumn]:
    """What is inserted tells what happened, so it has to be there; what is updated is meterctl's own, and can be added.

    Events that are there before count as acted on: by the application, which had them alone.
    """
    for name, kind in (
        (EVENT_ID, Kind.TEXT),
        ("type", Kind.TEXT),
        ("livemode", Kind.BOOLEAN),
        ("created", Kind.ZONED),
        ("payload", Kind.JSON),
    ):
        yield WantedColumn(key=EVENTS, name=name, kind=kind, inserted=True, updated=name == "payload")
    for name, kind, added_as in (
        ("api_version", Kind.TEXT, "text"),
        ("account", Kind.TEXT, "text"),
        ("source", Kind.TEXT, "text NOT NULL DEFAULT 'endpoint'"),
    ):
        yield WantedColumn(key=EVENTS, name=name, kind=kind, inserted=True, added_as=added_as)
    for name, kind, added_as in (
        ("status", Kind.TEXT, "text NOT NULL DEFAULT 'processed'"),
        ("attempt_count", Kind.INTEGER, "integer NOT NULL DEFAULT 0"),
        ("outcome", Kind.TEXT, "text"),
        ("error", Kind.TEXT, "text"),
        ("processed_at", Kind.ZONED, "timestamptz"),
    ):
        yield WantedColumn(key=EVENTS, name=name, kind=kind, updated=True, added_as=added_as)
    for name, kind, added_as in (
        ("received_at", Kind.ZONED, "timestamptz NOT NULL DEFAULT now()"),
        ("raw", Kind.BYTES, "bytea"),
        ("signature", Kind.TEXT, "text"),
    ):
        yield WantedColumn(key=EVENTS, name=name, kind=kind, added_as=added_as)


DEFAULTS_AFTERWARDS = {"status": "'received'"}
"""Columns of events whose default for new rows is another than for those that are there."""
