"""What the configuration wants of the operator's tables: which columns, of which types, and which of them to update."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from meterctl.core.identifier import Column
from meterctl.errors import UsageError
from meterctl.settings import CounterMeter, GaugeMeter, LookupSettings, RowsMeter, Settings
from meterctl.settings.problems import dotted

EVENT_NAME = "event_name"
"""A placeholder of identifiers that need not be a column: the meter's own event_name stands in."""

KNOWN_MAX = 12
"""A line that lists more names than this helps nobody."""


class Kind(Enum):
    """What a column's type must be; messages say so with the value."""

    ANY = "of any type"
    TEXT = "text or character varying"
    BOOLEAN = "boolean"
    INTEGER = "smallint, integer or bigint"
    JSON = "jsonb"
    BYTES = "bytea"
    ID = "smallint, integer, bigint, uuid, text or character varying"
    NUMBER = "a number (smallint, integer, bigint, numeric, real or double precision)"
    INSTANT = "timestamp with time zone"
    ZONED = "timestamp with time zone: no zone can be named here"
    LOCAL_TIME = "timestamp with or without time zone"

    def accepts(self, base_type: str) -> bool:
        """Whether a column of this type, as PostgreSQL writes it, will do."""
        return self is Kind.ANY or base_type in _TYPES[self]


_TYPES = {
    Kind.TEXT: {"text", "character varying"},
    Kind.BOOLEAN: {"boolean"},
    Kind.INTEGER: {"smallint", "integer", "bigint"},
    Kind.JSON: {"jsonb"},
    Kind.BYTES: {"bytea"},
    Kind.ID: {"smallint", "integer", "bigint", "uuid", "text", "character varying"},
    Kind.NUMBER: {"smallint", "integer", "bigint", "numeric", "real", "double precision"},
    Kind.INSTANT: {"timestamp with time zone"},
    Kind.ZONED: {"timestamp with time zone"},
    Kind.LOCAL_TIME: {"timestamp with time zone", "timestamp without time zone"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedColumn:
    """A column that a key of the configuration names. `added_as`: as what `db adopt` adds it where it is missing."""

    key: str
    name: str
    kind: Kind = Kind.ANY
    updated: bool = False
    inserted: bool = False
    added_as: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedTable:
    """A table that the section `[section]` of the configuration names; `name` as it is written there.

    `is_key`: no section names it, but this key.
    """

    section: str
    name: str
    columns: tuple[WantedColumn, ...]
    is_key: bool = False

    @property
    def key(self) -> str:
        """The key that names the table."""
        return self.section if self.is_key else f"{self.section}.table"

    @property
    def parts(self) -> tuple[str, ...]:
        """(table,) or (schema, table)."""
        return tuple(self.name.split("."))


def rows_meters(settings: Settings, keys: Sequence[str] | None = None) -> dict[str, RowsMeter]:
    """Return the enabled `rows` meters, or those of `keys` among them, in the order of the file."""
    enabled = settings.enabled_meters
    return {
        key: meter for key, meter in enabled.items() if isinstance(meter, RowsMeter) and (keys is None or key in keys)
    }


def adoptable_meters(settings: Settings) -> dict[str, RowsMeter | CounterMeter]:
    """Return the enabled meters whose table `db adopt` prepares: of rows, and counters that count a table's rows."""
    enabled = settings.enabled_meters
    return {
        key: meter
        for key, meter in enabled.items()
        if isinstance(meter, RowsMeter) or (isinstance(meter, CounterMeter) and meter.table)
    }


def meters_of_table(
    settings: Settings, table: str, others: Sequence[WantedTable] = ()
) -> dict[str, RowsMeter | CounterMeter]:
    """Return the adoptable meters on this table.

    Raises UsageError naming the tables that can be adopted if it is neither a meter's nor one of `others`.
    """
    meters = adoptable_meters(settings)
    found = {key: meter for key, meter in meters.items() if is_named(table, meter.table_parts)}
    if not found and not any(is_named(table, one.parts) for one in others):
        known = sorted({".".join(meter.table_parts) for meter in meters.values()} | {one.name for one in others})
        raise UsageError(f'no enabled meter has the table "{table}" to adopt{suggestion(table, known)}')
    return found


def is_named(table: str, parts: Sequence[str]) -> bool:
    """Whether a table is meant, by its whole name or its last part."""
    return table in {".".join(parts), parts[-1]}


def _instant(time_zone: str | None) -> Kind:
    """Return what a column of instants must be: where the zone is named, its type may lack it."""
    return Kind.INSTANT if time_zone is None else Kind.LOCAL_TIME


def wanted_of_meter(key: str, meter: RowsMeter | GaugeMeter) -> WantedTable:
    """Return what a meter wants of its usage table."""
    section = dotted(("meters", key))
    columns = _rows_columns(section, meter) if isinstance(meter, RowsMeter) else _payer_columns(section, meter)
    return WantedTable(section=section, name=meter.table, columns=tuple(columns))


def wanted_of_counter(key: str, meter: CounterMeter) -> WantedTable:
    """Return what counting a table's rows wants of it."""
    section = dotted(("meters", key))
    subject = WantedColumn(key=f"{section}.payers[0].column", name=meter.subject)
    return WantedTable(section=section, name=meter.table or "", columns=(subject,))


def _rows_columns(section: str, meter: RowsMeter) -> Iterator[WantedColumn]:
    yield WantedColumn(key=f"{section}.id", name=meter.id, kind=Kind.ID)
    if meter.value is not None:
        yield WantedColumn(key=f"{section}.value", name=meter.value, kind=Kind.NUMBER)
    instant = _instant(meter.time_zone)
    yield WantedColumn(key=f"{section}.occurred_at", name=meter.occurred_at, kind=instant)
    yield WantedColumn(
        key=f"{section}.reported_at", name=meter.reported_at, kind=instant, updated=True, added_as="timestamptz"
    )
    yield from _payer_columns(section, meter)
    for part in meter.identifier_template:
        if isinstance(part, Column) and part.name != EVENT_NAME:
            yield WantedColumn(key=f"{section}.identifier", name=part.name)
    for name, column in meter.payload.items():
        yield WantedColumn(key=f"{section}.{dotted(('payload', name))}", name=column)


def _payer_columns(section: str, meter: RowsMeter | GaugeMeter) -> Iterator[WantedColumn]:
    for position, payer in enumerate(meter.payers):
        yield WantedColumn(key=f"{section}.payers[{position}].column", name=payer.column)


def wanted_of_lookup(name: str, lookup: LookupSettings) -> WantedTable:
    """Return what a lookup wants of its table."""
    section = dotted(("lookups", name))
    instants, instant = ("started_at", "ended_at", "period_start", "period_end"), _instant(lookup.time_zone)
    columns = [
        WantedColumn(key=f"{section}.{field}", name=column, kind=instant if field in instants else Kind.ANY)
        for field in ("subject", "customer", "id", "status", *instants)
        if (column := getattr(lookup, field)) is not None
    ]
    return WantedTable(section=section, name=lookup.table, columns=tuple(columns))


def near(word: str, known: Sequence[str]) -> str | None:
    """Return the name that a misspelt word could mean."""
    found = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(word.lower(), known, n=1)
    return found[0] if found else None


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean "x"?", or what there is (as far as a line can hold it), or nothing."""
    meant = near(word, known)
    if meant is not None:
        return f'; did you mean "{meant}"?'
    return f"; known: {', '.join(known)}" if 0 < len(known) <= KNOWN_MAX else ""
