"""Whose ledger it is, and in which database: a restored one, a failover's and a copy bear other marks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors as pg

from meterctl.errors import ConfigurationError
from meterctl.logs import get_logger
from meterctl.postgres.catalog import fetch
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query
from meterctl.postgres.usage_queries import LedgerOwner

UNREADABLE = (pg.InsufficientPrivilege, pg.FeatureNotSupported, pg.UndefinedFunction, pg.ObjectNotInPrerequisiteState)
"""How a server, a managed one perhaps or a standby, says that a mark cannot be read."""

WHAT_TO_DO = (
    "after a restore or a failover: `meterctl db recover --since INSTANT`; on a copy that is to bill nothing of this: "
    "`meterctl db adopt-copy`"
)

log = get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What tells this database from another; None where it cannot be read here.

    The host is not among them: it changes with every container that is started anew on the same volume.
    """

    system_identifier: str | None
    timeline: str | None
    database_oid: str | None

    @property
    def unreadable(self) -> list[str]:
        """The marks that cannot be read."""
        return [name.replace("_", " ") for name, value in asdict(self).items() if value is None]


def read_marks(connection: psycopg.Connection) -> Marks:
    """Return the marks of the database that the connection leads to."""
    with transaction(connection, read_only=True):
        return Marks(**{field.name: _mark(connection, field.name) for field in fields(Marks)})


def _mark(connection: psycopg.Connection, name: str) -> str | None:
    try:
        with connection.transaction():
            row = connection.execute(query("identity", name)).fetchone()
    except UNREADABLE:
        return None
    return str(row[0]) if row else None


def ledger_identity(connection: psycopg.Connection) -> Mapping[str, Any] | None:
    """Return whose ledger it is and its marks, or None if it is nobody's yet."""
    with transaction(connection, read_only=True):
        found = fetch(connection, query("identity", "read"))
    return found[0] if found else None


def require_owner(connection: psycopg.Connection, owner: LedgerOwner) -> None:
    """Raise ConfigurationError if the ledger is another account's or mode's, or of another database's past.

    A new ledger belongs to nobody.
    """
    found = ledger_identity(connection)
    if found is not None:
        _require_ours(found, owner, read_marks(connection))


def _require_ours(found: Mapping[str, Any], owner: LedgerOwner, marks: Marks) -> None:
    if (found["account"], found["livemode"]) != (owner.account, owner.livemode):
        raise ConfigurationError(
            f"this ledger belongs to account {found['account']} in {mode_name(livemode=found['livemode'])} mode, "
            f"the key to {owner.account} in {mode_name(livemode=owner.livemode)} mode",
            hint="use the key of the ledger's account and mode, or another database",
        )
    _require_same_database(found, marks)


def _require_same_database(found: Mapping[str, Any], marks: Marks) -> None:
    if found["recover_since"] is not None:
        raise ConfigurationError(
            "`meterctl db recover` has begun and not ended", hint="run it again; until then nothing is sent"
        )
    changed = [
        f"its {name.replace('_', ' ')} was {found[name]} and is {value}"
        for name, value in asdict(marks).items()
        if value is not None and found[name] not in {None, value}
    ]
    if changed:
        raise ConfigurationError(
            f"this is not the database, or not the past of it, that the ledger was written in: {', '.join(changed)}",
            hint=WHAT_TO_DO,
        )


def claim_ledger(connection: psycopg.Connection, owner: LedgerOwner, now: datetime) -> None:
    """Make a new ledger the account's own, or check that it is, and in the database that it was written in."""
    marks = read_marks(connection)
    with transaction(connection):
        claim = asdict(owner) | asdict(marks) | {"now": now}
        is_new = connection.execute(query("identity", "claim"), claim).rowcount
        connection.execute(query("identity", "mark"), asdict(marks))
        found = fetch(connection, query("identity", "read"))[0]
    _require_ours(found, owner, marks)
    if is_new and marks.unreadable:
        log.warning("copies_cannot_be_told", unreadable=marks.unreadable)


def mode_name(*, livemode: bool) -> str:
    """Return Stripe's word for the mode."""
    return "live" if livemode else "test"
