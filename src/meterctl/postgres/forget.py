"""Leaving test mode: what a test-mode ledger holds, and whether all of it can be taken back.

What would be forgotten is found here, so that it can be shown; `forgetting` then does it. An event is forgotten only
together with the stamp it brought: a row that kept the stamp of a test would never be billed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from meterctl.errors import ConfigurationError, LockedError, NotPermittedError
from meterctl.postgres.catalog import TableInfo, current_role, fetch, table_info, table_names
from meterctl.postgres.connect import transaction
from meterctl.postgres.indexes import INDEXABLE
from meterctl.postgres.misfits import Misfit, missing_table, table_misfits
from meterctl.postgres.payers_sql import PayersSql
from meterctl.postgres.queries import query
from meterctl.postgres.rows_sql import RowsSql
from meterctl.postgres.wanted import wanted_of_meter
from meterctl.settings import RowsMeter, Settings
from meterctl.settings.problems import dotted


@dataclass(frozen=True, kw_only=True, slots=True)
class StampedTable:
    """The table of a meter, and the statements about its rows. `sees_all`: a row that is not found does not exist."""

    name: str
    sees_all: bool
    statements: RowsSql

    def compose(self, name: str, **parts: sql.Composable) -> sql.Composed:
        """Return a statement of forget.sql about this table."""
        id_type = sql.SQL(self.statements.id_type)
        ours = self.statements.compose(query("forget", "ours"))
        return self.statements.compose(query("forget", name), id_type=id_type, ours=ours, **parts)

    def verdicts(self, which: LiteralString) -> sql.Composed:
        """Return the SELECT that says what the rows of those events are now; `which` is a condition on `event`."""
        return self.compose("verdicts", which=sql.SQL(which))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Events whose rows are alike, with a few of the rows' ids."""

    count: int = 0
    sample_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterPart:
    """What the ledger holds of one meter (its key in the configuration); `units` were accepted by Stripe.

    `table` is None where no row can bear a stamp. `rows` says what the rows of the events are, by verdict: `stamped`
    (by us: to be taken off), `foreign` (stamped before the acceptance, by somebody else: stays), `gone` (deleted
    since), `changed` and `unseen` (cannot be told: event and stamp stay).
    """

    meter: str
    event_names: tuple[str, ...]
    event_count: int
    units: Decimal
    table: StampedTable | None
    rows: Mapping[str, Rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgettable:
    """All there is to forget. `account` is None where the ledger belongs to nobody."""

    account: str | None
    run_count: int
    parts: tuple[MeterPart, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to forget."""
        return self.account is None and not self.run_count and not self.parts

    @property
    def event_names(self) -> set[str]:
        """The Stripe meters that the events were for."""
        return {name for part in self.parts for name in part.event_names}


def find_forgettable(connection: psycopg.Connection, settings: Settings) -> Forgettable:
    """Return what is to be forgotten.

    Raises ConfigurationError if the ledger is live, or where rows may bear a stamp that could not be taken off;
    NotPermittedError if only privileges lack; LockedError while a report is under way.
    """
    with transaction(connection, read_only=True):
        (ledger,) = fetch(connection, query("forget", "ledger"))
        _require_test_mode(ledger)
        _require_rights(connection)
        require_no_report(connection)
        meters = fetch(connection, query("forget", "meters"))
        tables = _tables(connection, settings, [row["meter"] for row in meters if row["accepted_row_count"]])
        parts = tuple(_part(connection, row, tables.get(row["meter"])) for row in meters)
    return Forgettable(account=ledger["account"], run_count=ledger["run_count"], parts=parts)


def require_no_report(connection: psycopg.Connection) -> None:
    """Raise LockedError naming a report that has begun, even if it only waits for its lock."""
    found = fetch(connection, query("forget", "living"))
    if found:
        raise LockedError(
            f"a report is under way: {found[0]['application_name']} (PostgreSQL backend {found[0]['pid']})",
            hint="run it again when that one has ended",
        )


def _require_test_mode(ledger: Mapping[str, Any]) -> None:
    if ledger["livemode"]:
        why = f"this ledger belongs to account {ledger['account']} in live mode"
    elif ledger["has_live_events"] or ledger["has_live_runs"]:
        why = f"this ledger holds {'events' if ledger['has_live_events'] else 'runs'} of live mode"
    else:
        return
    raise ConfigurationError(
        f"{why}; what was billed is never forgotten", hint="nothing was changed; is it the right DATABASE_URL?"
    )


def _require_rights(connection: psycopg.Connection) -> None:
    lacking = [f"meterctl.{row['relname']}" for row in fetch(connection, query("forget", "lacking"))]
    if lacking:
        role = current_role(connection)
        raise NotPermittedError(
            f"role {role} lacks the right to delete on {', '.join(lacking)}",
            hint=f"run it as the owner of the schema meterctl, or GRANT DELETE ON {', '.join(lacking)} TO {role};",
        )


def _tables(connection: psycopg.Connection, settings: Settings, keys: Sequence[str]) -> dict[str, StampedTable]:
    """Return the tables in which the meters' accepted events have stamped rows."""
    meters = {key: meter for key in keys if isinstance(meter := settings.meters.get(key), RowsMeter)}
    unknown = [key for key in keys if key not in meters]
    if unknown:
        raise ConfigurationError(
            f"rows were stamped for {', '.join(unknown)}, and the configuration has no meter of rows under that key",
            problems=tuple(f"meters.{key}: not configured, so its rows cannot be found" for key in unknown),
            hint="restore each, with enabled = false if it is not to be reported; nothing was changed",
        )
    found = {key: table_info(connection, meter.table_parts) for key, meter in meters.items()}
    _require_fit(
        [line for key, meter in meters.items() for line in _misfits(connection, settings, key, meter, found[key])]
    )
    return {key: _stamped_table(settings, meters[key], table) for key, table in found.items() if table is not None}


def _stamped_table(settings: Settings, meter: RowsMeter, table: TableInfo) -> StampedTable:
    return StampedTable(
        name=meter.table,
        sees_all=table.kind in INDEXABLE and not table.filtered,
        statements=RowsSql(meter, PayersSql(meter.payers, settings.lookups, {}), table),
    )


def _misfits(
    connection: psycopg.Connection, settings: Settings, key: str, meter: RowsMeter, table: TableInfo | None
) -> list[Misfit]:
    """Return why the stamps of a meter's rows could not be taken off: only three of its columns are needed."""
    section = dotted(("meters", key))
    needed = {f"{section}.{name}" for name in ("id", "occurred_at", "reported_at")}
    wanted = wanted_of_meter(key, meter)
    wanted = replace(wanted, columns=tuple(column for column in wanted.columns if column.key in needed))
    role = current_role(connection)
    if table is None:
        return [missing_table(wanted, table_names(connection), role, settings.where)]
    return list(table_misfits(wanted, table, role, settings.where))


def _require_fit(found: Sequence[Misfit]) -> None:
    lines = tuple(dict.fromkeys(misfit.line for misfit in found))
    if not found:
        return
    if all(misfit.privilege for misfit in found):
        raise NotPermittedError("\n  ".join(("this role may not take the stamps off", *lines)))
    raise ConfigurationError(
        "the stamps could not be taken off, for the tables do not fit the configuration",
        problems=lines,
        hint="correct the configuration; nothing was changed",
    )


def _part(connection: psycopg.Connection, row: Mapping[str, Any], table: StampedTable | None) -> MeterPart:
    return MeterPart(
        meter=row["meter"],
        event_names=tuple(row["event_names"]),
        event_count=row["event_count"],
        units=row["units"],
        table=table,
        rows=_rows_by_verdict(connection, row["meter"], table) if table is not None else {},
    )


def _rows_by_verdict(connection: psycopg.Connection, meter: str, table: StampedTable) -> dict[str, Rows]:
    which = "event.meter = %(meter)s AND NOT event.livemode AND event.accepted_at IS NOT NULL"
    text = sql.SQL(query("forget", "count_verdicts")).format(verdicts=table.verdicts(which))
    try:
        with connection.cursor() as cursor:
            found = cursor.execute(text, {"meter": meter, "sees_all": table.sees_all}).fetchall()
    except psycopg.DataError as error:
        raise ConfigurationError(
            f"the rows of meter {meter} are not found in {table.name}: {str(error).splitlines()[0]}",
            hint="name the table and the id column that the events were made from; nothing was changed",
        ) from error
    return {verdict: Rows(count=count, sample_ids=tuple(ids)) for verdict, count, ids in found}
