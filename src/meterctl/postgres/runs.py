"""`meterctl.runs` and `meterctl.identity`: who ran, what came of it, and whose ledger this is."""

import os
import socket
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from meterctl import __version__
from meterctl.errors import ConfigurationError, ExitCode
from meterctl.postgres.connect import transaction
from meterctl.postgres.queries import query
from meterctl.postgres.rows import LedgerOwner


def run_label() -> str:
    """Return this process as other runs see it in PostgreSQL: application_name holds 63 bytes."""
    return f"meterctl {os.getpid()}@{socket.gethostname()}"[:63]


def start_run(connection: psycopg.Connection, command: str, owner: LedgerOwner, now: datetime) -> int:
    """Record that a run began; return its id."""
    with transaction(connection):
        row = connection.execute(
            query("runs", "start"),
            {
                "command": command,
                "mode": mode_name(livemode=owner.livemode),
                "account": owner.account,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": __version__,
                "now": now,
            },
        ).fetchone()
    assert row is not None  # noqa: S101 -- INSERT … RETURNING of one row gives one row
    return int(row[0])


def finish_run(
    connection: psycopg.Connection, run_id: int, exit_code: ExitCode, counts: Mapping[str, Any], now: datetime
) -> None:
    """Record how a run ended."""
    with transaction(connection):
        connection.execute(
            query("runs", "finish"),
            {"run_id": run_id, "now": now, "exit_code": int(exit_code), "counts": Jsonb(dict(counts))},
        )


def require_owner(connection: psycopg.Connection, owner: LedgerOwner) -> None:
    """Raise ConfigurationError if the ledger belongs to another account or mode. A new ledger belongs to nobody."""
    with transaction(connection, read_only=True):
        row = connection.execute(query("ledger", "identity")).fetchone()
    if row is None or (row[0], row[1]) == (owner.account, owner.livemode):
        return
    raise ConfigurationError(
        f"this ledger belongs to account {row[0]} in {mode_name(livemode=row[1])} mode, the key to "
        f"{owner.account} in {mode_name(livemode=owner.livemode)} mode",
        hint="use the key of the ledger's account and mode, or another database",
    )


def claim_ledger(connection: psycopg.Connection, owner: LedgerOwner, now: datetime) -> None:
    """Make a new ledger the account's own, or check that it is."""
    with transaction(connection):
        connection.execute(
            query("ledger", "claim_identity"), {"account": owner.account, "livemode": owner.livemode, "now": now}
        )
    require_owner(connection, owner)


def mode_name(*, livemode: bool) -> str:
    """Return Stripe's word for the mode."""
    return "live" if livemode else "test"
