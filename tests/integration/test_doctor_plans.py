"""Whether rows are found by an index, as PostgreSQL itself plans it: where tables are more than plain ones."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from meterctl.actions.collect import row_window
from meterctl.core.diagnosis import Finding
from meterctl.postgres.connect import connect
from meterctl.postgres.doctor import triggers, without_seqscan
from meterctl.postgres.plans import PAGE, collecting
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.sources import Sources
from meterctl.settings import RowsMeter, load_settings

BY_INDEX = "a page of unreported rows of usage_events is read by "
BY_NONE = "for a page of unreported rows PostgreSQL reads all of usage_events: no index serves"


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as opened:
        yield opened


def planned(connection: psycopg.Connection) -> Finding:
    settings = load_settings(config_file=None, environ={"DATABASE_URL": "postgresql:///x"}, flags={})
    meter = settings.meters["ai_suggestion"]
    assert isinstance(meter, RowsMeter)
    source = Sources(connection=connection, settings=settings).of("ai_suggestion")
    assert isinstance(source, PostgresRows)
    with without_seqscan(connection):
        return collecting(source.explain(row_window(datetime.now(UTC), recent=None), batch_size=PAGE), meter.table)


def partitioned(connection: psycopg.Connection) -> None:
    connection.execute("ALTER TABLE usage_events RENAME TO plain")
    connection.execute(
        "CREATE TABLE usage_events (id bigint, workspace_id text, user_id text, quantity numeric, event_type text,"
        " created_at timestamptz NOT NULL, stripe_reported_at timestamptz) PARTITION BY HASH (id);"
        "CREATE TABLE half_a PARTITION OF usage_events FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE half_b PARTITION OF usage_events FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
    )


def test_every_partition_needs_the_index(connection: psycopg.Connection) -> None:
    partitioned(connection)
    assert planned(connection).message == BY_NONE
    definition = "(created_at, id) WHERE stripe_reported_at IS NULL"
    connection.execute(f"CREATE INDEX in_a ON half_a {definition}")
    assert planned(connection).message == BY_NONE
    connection.execute(f"CREATE INDEX in_b ON half_b {definition}")
    assert planned(connection).message == BY_INDEX + "in_a, in_b"


def test_a_view_is_read_by_the_index_of_the_table_below(connection: psycopg.Connection) -> None:
    connection.execute("ALTER TABLE usage_events RENAME TO below; CREATE VIEW usage_events AS SELECT * FROM below")
    assert planned(connection).message == BY_INDEX + "usage_events_unreported"
    connection.execute("DROP INDEX usage_events_unreported")
    assert planned(connection).message == BY_NONE


def test_a_trigger_that_partitions_inherited_is_told_once(connection: psycopg.Connection) -> None:
    partitioned(connection)
    connection.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER above AFTER UPDATE ON usage_events FOR EACH ROW EXECUTE FUNCTION touch();"
        "CREATE TRIGGER below AFTER UPDATE ON half_b FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    settings = load_settings(config_file=None, environ={"DATABASE_URL": "postgresql:///x"}, flags={})
    assert [finding.message for finding in triggers(connection, settings)] == [
        "stamping fires trigger above of usage_events, for each row",
        "stamping fires trigger below of half_b, for each row",
    ]
