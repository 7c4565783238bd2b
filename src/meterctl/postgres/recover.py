"""A database with a past of its own: what it holds as open is put in doubt, or, in a copy, closed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal

import psycopg
from psycopg.rows import dict_row

from meterctl.core.model import PAST_LIMIT
from meterctl.errors import NotPermittedError
from meterctl.postgres.catalog import current_role
from meterctl.postgres.connect import transaction
from meterctl.postgres.identity import read_marks
from meterctl.postgres.queries import query


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenEvents:
    """Events of one meter and state that no answer has closed."""

    event_name: str
    state: str
    event_count: int
    units: Decimal
    customer_count: int


def open_events(connection: psycopg.Connection) -> list[OpenEvents]:
    """Return what is open in the ledger, by event_name and state."""
    with transaction(connection, read_only=True), connection.cursor(row_factory=dict_row) as cursor:
        return [OpenEvents(**row) for row in cursor.execute(query("identity", "open_events")).fetchall()]


def begin_recovery(connection: psycopg.Connection, since: datetime) -> None:
    """From here on no report sends anything, until the recovery has ended."""
    with transaction(connection):
        connection.execute(query("identity", "begin_recovery"), {"since": since})


def end_recovery(connection: psycopg.Connection, *, doubt_since: datetime, now: datetime) -> int:
    """Put in doubt what is open, or was found expired, and take the marks of this database; return how many.

    One transaction.
    """
    marks = read_marks(connection)
    with transaction(connection):
        count = connection.execute(
            query("identity", "doubt"),
            {"doubt_since": doubt_since, "expired_before": now - PAST_LIMIT},
        ).rowcount
        connection.execute(query("identity", "break_series"), {"now": now})
        connection.execute(query("identity", "end_recovery"), asdict(marks) | {"now": now})
    return count


def adopt_copy(connection: psycopg.Connection, reason: str) -> int:
    """Close all that is open and make the ledger nobody's; return how many events. One transaction."""
    with transaction(connection):
        count = connection.execute(query("identity", "close"), {"reason": reason}).rowcount
        connection.execute(query("identity", "unprove"))
        connection.execute(query("identity", "forget"))
    return count


def require_right_to_adopt(connection: psycopg.Connection) -> None:
    """Raise NotPermittedError for a role that may not make the ledger nobody's, as the job's may not."""
    with transaction(connection, read_only=True):
        row = connection.execute(query("identity", "may_forget")).fetchone()
        if row is None or not row[0]:
            raise NotPermittedError(
                f"role {current_role(connection)} lacks the right to delete on meterctl.identity",
                hint="run it as the owner of the schema meterctl",
            )


def event_names(found: Sequence[OpenEvents]) -> set[str]:
    """Return the meters that have open events."""
    return {one.event_name for one in found}
