"""Acting on the events of subscriptions: the facts are kept, and the application's table is made to say the same.

The table is written only as a function of the facts, under a lock on them: whatever the order in which events come, and
however many processes bring them, it ends the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from meterctl.core.stripe_event import StripeEvent
from meterctl.core.subscription import (
    ORGANIZATION,
    UNMAPPED,
    USER,
    Facts,
    Held,
    Row,
    document_of,
    facts_in,
    joined,
    row_of,
)
from meterctl.core.subscription_events import CHECKOUT, CREATED, SUBSCRIPTION_TYPES, told_by
from meterctl.errors import InputError
from meterctl.postgres.catalog import fetch
from meterctl.postgres.fragments import quoted
from meterctl.postgres.queries import query
from meterctl.postgres.refusals import said
from meterctl.settings.webhooks import SubscriptionsSettings

KEPT = "the row stays as it is: it is newer, or has ended"


class SubscriptionHandler:
    """Keeps the configured table true to what events tell of subscriptions."""

    TYPES = SUBSCRIPTION_TYPES

    def __init__(self, connection: psycopg.Connection, settings: SubscriptionsSettings) -> None:
        self._connection = connection
        self._table = _Table(connection, settings)
        self._subjects = {kind for kind in (USER, ORGANIZATION) if getattr(settings, kind) is not None}

    def handle(self, event: StripeEvent) -> str:
        """Act on an event of TYPES within the caller's transaction; return in a few words what it came to.

        Raises InputError where the payload lacks something or the table refuses the row: the caller rolls back.
        """
        told = told_by(event)
        if told is None:
            return "not about a subscription"
        if told.facts.checkout and not told.facts.checkout.subject(self._subjects):
            return UNMAPPED
        facts = self._kept(told.subscription, told.facts)
        if not facts.include(told.facts):
            return "older than what is known"
        return self._recorded(told.subscription, facts)

    def _kept(self, subscription: str, told: Facts) -> Facts:
        """Return all that is known of a subscription; nobody else changes that before the transaction ends."""
        parameters = {"subscription": subscription}
        (row,) = fetch(self._connection, query("subscriptions", "facts"), parameters)
        facts = joined(facts_in(row["facts"]), told)
        self._connection.execute(
            query("subscriptions", "keep_facts"), {"facts": Jsonb(document_of(facts)), **parameters}
        )
        return facts

    def _recorded(self, subscription: str, facts: Facts) -> str:
        """Make the table say what is known; return what that is."""
        subject = facts.checkout.subject(self._subjects) if facts.checkout else None
        names = {"subscription": subscription, "customer": facts.customer} | dict([subject] if subject else [])
        found = self._table.find(subscription, facts.customer)
        row = row_of(facts, found.held if found else None)
        if found:
            self._table.update(found, {**names, **row})
            return _words(row) or ("subject recorded" if facts.is_checkout_only else KEPT)
        if not facts.snapshot:
            return f"waits for {CREATED}"
        if self._subjects and not subject:
            return f"{_words(row)}; waits for {CHECKOUT}"
        self._table.insert({**names, **row})
        return _words(row)


def _words(row: Row) -> str:
    """Return a row's state for a person; empty if there is none."""
    for key, word in (("ended_at", "since"), ("period_end", "until")):
        instant = row.get(key)
        if isinstance(instant, datetime):
            return f"{row['status']} {word} {instant:%Y-%m-%dT%H:%M:%SZ}"
    return str(row.get("status", ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A row of the table, and by what it is found again."""

    held: Held
    condition: sql.Composed


class _Table:
    """The application's table, as far as its columns are mapped."""

    def __init__(self, connection: psycopg.Connection, settings: SubscriptionsSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._name = quoted(*settings.table_parts)

    def find(self, subscription: str, customer: str) -> _Found | None:
        """Return the subscription's row, else the only one of its customer that is of no known subscription; locked.

        Raises InputError if the subscription has several.
        """
        parameters = {"subscription": subscription, "customer": customer}
        for name in ("is_row", "is_free_row"):
            condition = sql.SQL(query("subscriptions", name)).format(
                subscription=self._column("subscription"), customer=self._column("customer")
            )
            with self._connection.cursor(row_factory=class_row(Held)) as cursor:
                rows = cursor.execute(self._held(condition), parameters).fetchall()
            if len(rows) == 1:
                return _Found(held=rows[0], condition=condition)
            if rows and name == "is_row":
                raise InputError(
                    f"{self._settings.table} has several rows of {subscription}", hint="leave one of them, and replay"
                )
        return None

    def update(self, found: _Found, values: Row) -> None:
        """Write what is mapped of the values. Raises InputError if the table refuses it."""
        assignments = [
            sql.SQL("{} = {}").format(self._column(key), sql.Placeholder(key)) for key in self._mapped(values)
        ]
        statement = sql.SQL(query("subscriptions", "update")).format(
            table=self._name, assignments=sql.SQL(", ").join(assignments), condition=found.condition
        )
        self._execute(statement, values)

    def insert(self, values: Row) -> None:
        """Make a row of what is mapped of the values. Raises InputError if the table refuses it."""
        keys = self._mapped(values)
        statement = sql.SQL(query("subscriptions", "insert")).format(
            table=self._name,
            columns=sql.SQL(", ").join(self._column(key) for key in keys),
            values=sql.SQL(", ").join(sql.Placeholder(key) for key in keys),
        )
        self._execute(statement, values)

    def _execute(self, statement: sql.Composed, values: Row) -> None:
        try:
            self._connection.execute(statement, values)
        except (psycopg.IntegrityError, psycopg.DataError, pg.RaiseException) as error:
            raise InputError(
                f"{self._settings.table} refuses the row: {said(error)}", hint="mend the cause, and replay the event"
            ) from error

    def _held(self, condition: sql.Composed) -> sql.Composed:
        return sql.SQL(query("subscriptions", "held")).format(
            table=self._name,
            condition=condition,
            **{key: self._value(key) for key in ("status", "ended_at", "event_at")},
        )

    def _value(self, key: str) -> sql.SQL:
        """Return what a column holds, NULL where none is mapped."""
        return self._column(key) if self._mapped([key]) else sql.SQL("NULL")

    def _mapped(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if getattr(self._settings, key) is not None]

    def _column(self, key: str) -> sql.SQL:
        return quoted(getattr(self._settings, key))
