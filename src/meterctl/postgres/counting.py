"""The trigger by which a counter counts the rows that are inserted into a table.

It fires once a statement and sees what was really inserted: not what `ON CONFLICT DO NOTHING` left out, not updates,
not what is rolled back. It stands on the table and on each of its partitions, for an INSERT into a partition fires only
that one's. Its function runs as its owner, so the application needs no right on the ledger, and it only inserts.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from meterctl.errors import ConfigurationError
from meterctl.postgres.adopt import Adoption, Step
from meterctl.postgres.catalog import TableInfo, current_role, fetch, find_tables, quoted_name, table_names
from meterctl.postgres.connect import transaction
from meterctl.postgres.indexes import INDEXABLE, NAME_BYTES_MAX, Relation, relations_of
from meterctl.postgres.misfits import missing_table, table_misfits
from meterctl.postgres.queries import query
from meterctl.postgres.wanted import wanted_of_counter
from meterctl.settings import CounterMeter, Settings


def plan_counting(connection: psycopg.Connection, settings: Settings, counters: Mapping[str, CounterMeter]) -> Adoption:
    """Return what the counters' tables lack. Raises ConfigurationError if a table does not fit its meter."""
    with transaction(connection, read_only=True):
        tables = _tables(connection, settings, counters)
        plans = [_plan(connection, key, meter, tables[key]) for key, meter in counters.items()]
    return Adoption(
        steps=tuple(step for plan in plans for step in plan.steps),
        notes=tuple(note for plan in plans for note in plan.notes),
        obstacles=tuple(dict.fromkeys(line for plan in plans for line in plan.obstacles)),
    )


def uncounted(connection: psycopg.Connection, key: str, meter: CounterMeter) -> list[str]:
    """Return, in words, where the meter's table and its partitions lack the trigger as it should be."""
    table = find_tables(connection, [meter.table_parts]).get(meter.table_parts)
    if table is None:
        return [f"there is no table {meter.table}"]
    lacking = _lacking(connection, key, relations_of(connection, table.oid))
    missing = [f"{relation.sql} has no trigger that counts its rows, or a disabled one" for relation in lacking]
    if missing or _differs(connection, key, meter):
        return missing or ["the function that counts its rows is another"]
    return list(_may_not_count(connection, key))


def _tables(
    connection: psycopg.Connection, settings: Settings, counters: Mapping[str, CounterMeter]
) -> dict[str, TableInfo]:
    wanted = {key: wanted_of_counter(key, meter) for key, meter in counters.items()}
    found = find_tables(connection, [one.parts for one in wanted.values()])
    role, lines = current_role(connection), []
    for one in wanted.values():
        table = found.get(one.parts)
        if table is None:
            lines.append(missing_table(one, table_names(connection), role, settings.where).line)
            continue
        lines += [m.line for m in table_misfits(one, table, role, settings.where) if not m.privilege]
        if table.kind not in INDEXABLE:
            lines.append(f"{settings.where(one.key)}: {one.name} is not a table; only a table's rows can be counted")
    if lines:
        raise ConfigurationError("the tables do not fit the configuration", problems=tuple(dict.fromkeys(lines)))
    return {key: found[one.parts] for key, one in wanted.items()}


def _plan(connection: psycopg.Connection, key: str, meter: CounterMeter, table: TableInfo) -> Adoption:
    relations = relations_of(connection, table.oid)
    lacking = _lacking(connection, key, relations)
    statements = [function_text(key, meter)] if _differs(connection, key, meter) else []
    statements += [_trigger_text(key, relation) for relation in lacking]
    if not statements:
        return Adoption()
    step = Step(
        comment=f"{meter.table}: rows inserted from now on count for {key}",
        statements=tuple(statements),
        in_transaction=True,
    )
    note = f"{meter.table}: what is in it already is not counted, only what is inserted from now on"
    return Adoption(
        steps=(step,), notes=(note,) if lacking else (), obstacles=tuple(_obstacles(connection, key, lacking))
    )


def _obstacles(connection: psycopg.Connection, key: str, lacking: Sequence[Relation]) -> Iterator[str]:
    for relation in lacking:
        if not relation.owned:
            yield f"{relation.sql} belongs to {relation.owner}; run as {relation.owner}"
    if not _rights(connection, key)["may_create"]:
        role = current_role(connection)
        yield f"no function may be created in schema meterctl; GRANT CREATE ON SCHEMA meterctl TO {role};"
    yield from _may_not_count(connection, key)


def _lacking(connection: psycopg.Connection, key: str, relations: Sequence[Relation]) -> list[Relation]:
    parameters = {"tables": [one.oid for one in relations], "trigger": _trigger_name(key), "function": _name(key)}
    having = {row["table_oid"] for row in fetch(connection, query("adopt", "counting_triggers"), parameters)}
    return [relation for relation in relations if relation.oid not in having]


def _differs(connection: psycopg.Connection, key: str, meter: CounterMeter) -> bool:
    rows = fetch(connection, query("adopt", "counting_function"), {"function": _name(key)})
    return not rows or rows[0]["body"].strip() != _body(key, meter).strip() or not rows[0]["is_safe"]


def _may_not_count(connection: psycopg.Connection, key: str) -> Iterator[str]:
    rights = _rights(connection, key)
    if not rights["may_count"]:
        owner = rights["owner"]
        yield (
            f"the function that counts rows runs as {owner}, which may not; GRANT USAGE ON SCHEMA meterctl TO {owner}; "
            f"GRANT INSERT ON meterctl.usage_outbox TO {owner};"
        )


def _rights(connection: psycopg.Connection, key: str) -> Mapping[str, Any]:
    return fetch(connection, query("adopt", "counting_rights"), {"function": _name(key)})[0]


def _name(key: str) -> str:
    return _short(f"count_{key}")


def _trigger_name(key: str) -> str:
    return _short(f"meterctl_{key}")


def _short(name: str) -> str:
    """Return the name, or where it is longer than PostgreSQL's limit its hash."""
    if len(name.encode()) <= NAME_BYTES_MAX:
        return name
    return f"{name.partition('_')[0]}_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def function_text(key: str, meter: CounterMeter) -> str:
    """Return the statement that makes the meter's counting function."""
    name = quoted_name(("meterctl", _name(key)))
    return (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger\n"
        "LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $count$\n"
        f"{_body(key, meter)}$count$;"
    )


def _body(key: str, meter: CounterMeter) -> str:
    parts = {"fail": query("adopt", "counting_body"), "warn": query("adopt", "counting_body_that_warns")}
    text = parts[meter.trigger_failure].format(meter=_literal(key), subject=quoted_name((meter.subject,)))
    return text + "\n"


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)


def _trigger_text(key: str, relation: Relation) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER {quoted_name((_trigger_name(key),))} AFTER INSERT ON {relation.sql}\n"
        "REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT\n"
        f"EXECUTE FUNCTION {quoted_name(('meterctl', _name(key)))}();"
    )
