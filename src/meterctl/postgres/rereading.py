"""What a rejected level or window would be now: the same units at the same instant, for whoever pays for them today."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from meterctl.core.model import PAST_LIMIT
from meterctl.core.value import LOCAL_PROBLEMS
from meterctl.postgres.payers_sql import PayersSql
from meterctl.postgres.queries import query
from meterctl.settings import CounterMeter, GaugeMeter


def reread_windows(
    connection: psycopg.Connection,
    meter: GaugeMeter | CounterMeter,
    payers: PayersSql,
    events: Sequence[Mapping[str, Any]],
    now: datetime,
) -> dict[int, dict[str, Any]]:
    """Return by event id what each would be now, within the caller's transaction.

    A level that several subjects share has none to look up, and keeps its customer.
    """
    text = sql.SQL(query("payers", "reread")).format(
        payers=payers.answers(as_text=True),
        chosen=sql.SQL(query("payers", "chosen")),
        customer_problem=sql.SQL(query("event", "customer_problem")),
    )
    parameters = {
        "ids": [event["id"] for event in events],
        "expired_before": now - PAST_LIMIT,
        "customer_payload_key": meter.customer_payload_key,
        "problem_codes": list(LOCAL_PROBLEMS),
        "problem_sentences": list(LOCAL_PROBLEMS.values()),
    }
    with connection.cursor(row_factory=dict_row) as cursor:
        return {row["id"]: row for row in cursor.execute(text, parameters).fetchall()}
