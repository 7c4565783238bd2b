"""`meterctl.runs`: who ran, and what came of it."""

import os
import socket
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from meterctl import __version__
from meterctl.errors import ExitCode
from meterctl.postgres.connect import transaction
from meterctl.postgres.identity import mode_name
from meterctl.postgres.queries import query
from meterctl.postgres.usage_queries import LedgerOwner


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
