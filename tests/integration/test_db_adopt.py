"""Adopting the application's tables: column and index, on plain and partitioned tables, at a cut-over, and again."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import psycopg
import pytest

from meterctl.core.diagnosis import Status
from meterctl.errors import (
    ConfigurationError,
    LockedError,
    NotPermittedError,
    UnavailableError,
    UsageError,
)
from meterctl.postgres import adopting
from meterctl.postgres.adopt import Adoption, plan_adoption
from meterctl.postgres.adopting import carry_out, require_rights
from meterctl.postgres.connect import connect
from meterctl.postgres.indexes import Columns, index_name
from meterctl.postgres.inspection import inspect_database
from meterctl.postgres.wanted import meters_of_table, rows_meters
from meterctl.settings import Settings, load_settings
from roles import Roles, as_role, open_roles

CUT_OVER = datetime(2020, 11, 1, tzinfo=UTC)
COLUMNS = Columns(id="id", occurred_at="created_at", reported_at="stripe_reported_at")
PARTITIONED = """
DROP TABLE usage_events;
CREATE TABLE usage_events (
    id bigint, workspace_id text, user_id text, quantity numeric, created_at timestamptz, PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE usage_old PARTITION OF usage_events FOR VALUES FROM (MINVALUE) TO ('2020-10-01');
CREATE TABLE usage_new PARTITION OF usage_events FOR VALUES FROM ('2020-10-01') TO (MAXVALUE) PARTITION BY HASH (id);
CREATE TABLE usage_new_0 PARTITION OF usage_new FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE usage_new_1 PARTITION OF usage_new FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO usage_events (id, created_at) SELECT n, timestamptz '2020-09-01' + n * interval '1 day'
FROM generate_series(1, 80) AS n;
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """The shipped tables before adoption: three rows of October, two of November."""
    with connect(database_url) as opened:
        opened.execute("ALTER TABLE usage_events DROP COLUMN stripe_reported_at")
        opened.execute(
            "INSERT INTO usage_events (workspace_id, user_id, created_at)"
            " SELECT 'w', 'u', timestamptz '2020-10-29 12:00+00' + n * interval '1 day' FROM generate_series(0, 4) AS n"
        )
        yield opened


@pytest.fixture
def settings() -> Settings:
    return load_settings(config_file=None, environ={"DATABASE_URL": "postgresql:///x"}, flags={})


@pytest.fixture
def roles() -> Iterator[Roles]:
    with open_roles() as opened:
        yield opened


def planner(
    connection: psycopg.Connection, settings: Settings, cut_over: datetime | None = None
) -> Callable[[], Adoption]:
    return lambda: plan_adoption(connection, settings, rows_meters(settings), cut_over=cut_over)


def adopt(url: str, connection: psycopg.Connection, settings: Settings, cut_over: datetime | None = None) -> list[str]:
    """As the command does with --yes; the statements that were carried out."""
    plan = planner(connection, settings, cut_over)
    shown = plan()
    require_rights(shown)
    carry_out(connection, url, shown, plan)
    return statements(shown)


def statements(adoption: Adoption) -> list[str]:
    return [statement for step in adoption.steps for statement in step.statements]


def unreported(connection: psycopg.Connection) -> list[datetime]:
    rows = connection.execute("SELECT created_at FROM usage_events WHERE stripe_reported_at IS NULL ORDER BY 1")
    return [row[0].astimezone(UTC) for row in rows]


def failures(connection: psycopg.Connection, settings: Settings) -> list[str]:
    return [f.line for f in inspect_database(connection, settings) if f.status is not Status.OK]


def invalid_indexes(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone()
    assert row is not None
    return int(row[0])


def test_column_and_index_are_added_and_the_second_time_there_is_nothing_to_do(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    name = index_name("usage_events", COLUMNS)
    assert adopt(database_url, connection, settings) == [
        'ALTER TABLE "public"."usage_events" ADD COLUMN IF NOT EXISTS "stripe_reported_at" timestamptz;',
        (
            f'CREATE INDEX CONCURRENTLY "{name}" ON "public"."usage_events" ("created_at", "id")'
            ' WHERE "stripe_reported_at" IS NULL;'
        ),
    ]
    assert len(unreported(connection)) == 5
    assert planner(connection, settings)().steps == ()
    assert failures(connection, settings) == []


def test_an_index_of_another_name_is_left_alone(connection: psycopg.Connection, settings: Settings) -> None:
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    connection.execute("CREATE INDEX mine ON usage_events (created_at, id) WHERE stripe_reported_at IS NULL")
    assert planner(connection, settings)().steps == ()


def test_at_a_cut_over_only_usage_since_then_is_unreported(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    adopt(database_url, connection, settings, CUT_OVER)
    assert unreported(connection) == [datetime(2020, 11, 1, 12, tzinfo=UTC), datetime(2020, 11, 2, 12, tzinfo=UTC)]
    stamps = connection.execute("SELECT DISTINCT stripe_reported_at FROM usage_events WHERE created_at < '2020-11-01'")
    assert [row[0] for row in stamps] == [CUT_OVER]
    connection.execute("INSERT INTO usage_events (workspace_id, user_id, created_at) VALUES ('w', 'u', '2020-10-01')")
    assert len(unreported(connection)) == 3, "the default is gone: rows that come late are not the predecessor's"


def test_a_cut_over_rewrites_no_row(database_url: str, connection: psycopg.Connection, settings: Settings) -> None:
    """The file of the table stays the same, and so does the place of every row of the predecessor's."""
    before = "SELECT pg_relation_filenode('usage_events'), array_agg(ctid ORDER BY id) FROM usage_events"
    before += " WHERE created_at < '2020-11-01'"
    found = connection.execute(before).fetchall()
    adopt(database_url, connection, settings, CUT_OVER)
    assert connection.execute(before).fetchall() == found


def test_a_cut_over_on_an_existing_column_is_refused_with_the_count(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    adopt(database_url, connection, settings, CUT_OVER)
    with pytest.raises(UsageError, match="2 of its rows are unreported") as caught:
        planner(connection, settings, CUT_OVER)()
    hint = str(caught.value.hint)
    assert "leave out --cut-over" in hint
    connection.execute(hint[hint.index("UPDATE") :])
    assert len(unreported(connection)) == 2, "the statement it names stamps nothing from the cut-over on"


def test_a_cut_over_in_the_future_is_refused(connection: psycopg.Connection, settings: Settings) -> None:
    with pytest.raises(UsageError, match="future"):
        planner(connection, settings, datetime.now(UTC) + timedelta(days=400))()


def test_a_partitioned_table_gets_an_index_at_every_level(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    connection.execute(PARTITIONED)
    done = adopt(database_url, connection, settings, CUT_OVER)
    assert sum(statement.startswith("CREATE INDEX CONCURRENTLY") for statement in done) == 3
    assert sum(" ON ONLY " in statement for statement in done) == 2
    assert sum(" ATTACH PARTITION " in statement for statement in done) == 4
    assert invalid_indexes(connection) == 0
    assert planner(connection, settings)().steps == ()
    assert failures(connection, settings) == []
    assert len(unreported(connection)) == 20
    connection.execute("SET enable_seqscan = off")
    query = "EXPLAIN SELECT FROM usage_events WHERE stripe_reported_at IS NULL AND created_at > '2020-11-01'"
    text = str(connection.execute(query).fetchall())
    assert "Index" in text
    assert "Seq Scan" not in text


def test_a_partition_that_comes_later_has_the_index_at_once(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    connection.execute(PARTITIONED)
    connection.execute("DROP TABLE usage_new")
    adopt(database_url, connection, settings)
    connection.execute(
        "CREATE TABLE usage_next PARTITION OF usage_events FOR VALUES FROM ('2020-10-01') TO ('2020-11-01')"
    )
    assert planner(connection, settings)().steps == ()
    assert failures(connection, settings) == []


def test_an_adoption_of_partitions_goes_on_where_it_was_interrupted(
    connection: psycopg.Connection, settings: Settings
) -> None:
    """Stopped after each statement in turn, the rest is planned anew, and nothing is built twice."""
    connection.execute(PARTITIONED)
    everything = statements(planner(connection, settings)())
    for done, statement in enumerate(everything):
        assert statements(planner(connection, settings)()) == everything[done:]
        connection.execute(statement)
    assert planner(connection, settings)().steps == ()
    assert invalid_indexes(connection) == 0


def test_indexes_that_partitions_have_already_are_attached(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    connection.execute(PARTITIONED)
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    connection.execute('CREATE INDEX "Old" ON usage_old (created_at, id) WHERE stripe_reported_at IS NULL')
    done = adopt(database_url, connection, settings)
    assert sum("CONCURRENTLY" in statement for statement in done) == 2
    assert any(statement.endswith('ATTACH PARTITION "public"."Old";') for statement in done)
    assert failures(connection, settings) == []


def leave_invalid(connection: psycopg.Connection, url: str) -> None:
    """Interrupt CREATE INDEX CONCURRENTLY while it waits for another transaction that uses the table."""
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    with psycopg.connect(url) as other:
        other.execute("UPDATE usage_events SET quantity = 2")
        connection.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(
                "CREATE INDEX CONCURRENTLY broken ON usage_events (created_at, id) WHERE stripe_reported_at IS NULL"
            )
        connection.execute("RESET statement_timeout")


def test_an_interrupted_index_is_dropped_and_built_again(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    leave_invalid(connection, database_url)
    assert any("broken is invalid" in line for line in failures(connection, settings))
    done = adopt(database_url, connection, settings)
    assert done[0] == 'DROP INDEX CONCURRENTLY "public"."broken";'
    assert done[1].startswith("CREATE INDEX CONCURRENTLY")
    assert invalid_indexes(connection) == 0
    assert failures(connection, settings) == []


def test_an_index_that_another_session_is_building_is_no_leftover(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    build = "CREATE INDEX CONCURRENTLY slow ON usage_events (created_at, id) WHERE stripe_reported_at IS NULL"
    with (
        psycopg.connect(database_url, autocommit=True) as builder,
        psycopg.connect(database_url) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        writer.execute("UPDATE usage_events SET quantity = 2")
        building = pool.submit(builder.execute, build)
        try:
            wait_for(connection, "SELECT count(*) FROM pg_stat_progress_create_index WHERE index_relid <> 0")
            with pytest.raises(UnavailableError, match="being built"):
                planner(connection, settings)()
            assert not any("invalid, left" in line for line in failures(connection, settings))
        finally:
            writer.rollback()
            building.result()
    assert planner(connection, settings)().steps == ()


def wait_for(connection: psycopg.Connection, query: str) -> None:
    """Until the count is not 0, for at most ten seconds."""
    for _ in range(200):
        row = connection.execute(query).fetchone()
        if row and row[0]:
            return
        connection.execute("SELECT pg_sleep(0.05)")
    pytest.fail(f"nothing came of {query}")


def test_a_busy_table_is_left_alone_within_seconds(
    database_url: str, connection: psycopg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "LOCK_TIMEOUT", timedelta(milliseconds=200))
    with psycopg.connect(database_url) as other:
        other.execute("SELECT count(*) FROM usage_events")
        with pytest.raises(UnavailableError, match="the table is busy"):
            adopt(database_url, connection, settings, CUT_OVER)
    adopt(database_url, connection, settings, CUT_OVER)
    assert len(unreported(connection)) == 2


def test_looking_for_usage_since_the_cut_over_may_not_lock_the_table_for_long(
    database_url: str, connection: psycopg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow scan ends in nothing changed: the column comes with its stamps right, or not at all."""
    monkeypatch.setattr(adopting, "SCAN_TIMEOUT", timedelta(milliseconds=200))
    connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE UPDATE ON usage_events FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    with pytest.raises(UnavailableError, match="nothing changed"):
        adopt(database_url, connection, settings, CUT_OVER)
    assert 'ADD COLUMN "stripe_reported_at"' in statements(planner(connection, settings, CUT_OVER)())[0]


def test_two_at_once_build_one_index(database_url: str, connection: psycopg.Connection, settings: Settings) -> None:
    """The other one is told that it was second; whichever way it went, the table is adopted once."""
    barrier = Barrier(3)

    def start(_: int) -> str:
        with connect(database_url) as own:
            barrier.wait()
            try:
                adopt(database_url, own, settings)
            except (LockedError, UnavailableError) as error:
                return type(error).__name__
        return "done"

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(start, range(3)))
    assert "done" in results
    assert planner(connection, settings)().steps == ()
    row = connection.execute(
        "SELECT count(*) FROM pg_indexes WHERE tablename = 'usage_events' AND indexdef LIKE '%stripe_reported_at%'"
    ).fetchone()
    assert row == (1,)


def test_what_changed_since_it_was_shown_is_not_done(
    database_url: str, connection: psycopg.Connection, settings: Settings
) -> None:
    plan = planner(connection, settings)
    shown = plan()
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    with pytest.raises(UnavailableError, match="changed meanwhile"):
        carry_out(connection, database_url, shown, plan)


def test_the_session_keeps_no_time_out(database_url: str, connection: psycopg.Connection, settings: Settings) -> None:
    connection.execute("ALTER ROLE postgres IN DATABASE " + connection.info.dbname + " SET statement_timeout = '7s'")
    with connect(database_url) as fresh:
        adopt(database_url, fresh, settings)
        assert fresh.execute("SHOW statement_timeout").fetchone() == ("7s",)


@pytest.mark.usefixtures("connection")
def test_without_ownership_the_owner_is_named(database_url: str, settings: Settings, roles: Roles) -> None:
    role = roles.create(database_url)
    with connect(as_role(database_url, role)) as job, pytest.raises(NotPermittedError) as caught:
        adopt(database_url, job, settings)
    assert '"public"."usage_events" belongs to postgres; run as postgres' in str(caught.value)


def test_an_owner_who_may_not_create_in_the_schema_is_told_the_grant(
    database_url: str, connection: psycopg.Connection, settings: Settings, roles: Roles
) -> None:
    """Since PostgreSQL 15 the schema public is not open to everybody, and an index needs that right."""
    role = roles.create(database_url)
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    connection.execute(f"ALTER TABLE usage_events OWNER TO {role}")
    url = as_role(database_url, role)
    with connect(url) as owner:
        with pytest.raises(NotPermittedError, match="no index may be created") as caught:
            adopt(url, owner, settings)
        connection.execute(str(caught.value).partition("; ")[2])
        adopt(url, owner, settings)
    assert planner(connection, settings)().steps == ()


def test_a_view_says_where_the_column_must_come_from(connection: psycopg.Connection, tmp_path: Path) -> None:
    connection.execute("CREATE VIEW v AS SELECT id, workspace_id, user_id, quantity, created_at FROM usage_events")
    with pytest.raises(ConfigurationError) as caught:
        planner(connection, on_table(tmp_path, "v"))()
    assert "add it to the table below (timestamptz) and to the view" in caught.value.problems[0]


def test_a_view_with_the_column_gets_a_note_about_its_index(connection: psycopg.Connection, tmp_path: Path) -> None:
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    connection.execute("CREATE VIEW v AS SELECT * FROM usage_events")
    found = planner(connection, on_table(tmp_path, "v"))()
    assert found.steps == ()
    assert "give the table below it an index" in found.notes[0]


def test_a_column_that_may_be_misspelt_is_pointed_out(connection: psycopg.Connection, tmp_path: Path) -> None:
    """Adding it would bill everything again that the other column says is reported."""
    connection.execute("ALTER TABLE usage_events ADD COLUMN stripe_reported_at timestamptz")
    found = planner(connection, on_table(tmp_path, "usage_events", 'reported_at = "stripe_reportd_at"'))()
    assert "stripe_reported_at" in found.notes[0]


def test_a_table_that_does_not_fit_is_not_adopted(connection: psycopg.Connection, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        planner(connection, on_table(tmp_path, "usage_events", 'id = "idd"'))()
    assert 'there is no column "idd"' in caught.value.problems[0]


def on_table(folder: Path, table: str, more: str = "") -> Settings:
    file = folder / "config.toml"
    file.write_text(
        '[lookups.o]\ntable = "subscriptions"\nsubject = "user_id"\ncustomer = "stripe_customer_id"\n'
        f'[meters.x]\nsource = "rows"\nformula = "count"\ntable = "{table}"\noccurred_at = "created_at"\n{more}\n'
        'identifier = "{workspace_id}-{created_at}"\npayers = [{ lookup = "o", column = "user_id" }]\n',
        encoding="utf-8",
    )
    return load_settings(config_file=file, environ={"DATABASE_URL": "postgresql:///x"}, flags={})


def test_an_unknown_table_is_answered_with_the_configured_ones(settings: Settings) -> None:
    with pytest.raises(UsageError, match='did you mean "usage_events"'):
        meters_of_table(settings, "usage_event")
    assert list(meters_of_table(settings, "usage_events")) == ["ai_suggestion"]


@pytest.mark.parametrize("table", ["t", "a" * 63, "ü" * 31, "日本語" * 7])
def test_names_of_indexes_are_short_enough_and_differ_by_column(table: str) -> None:
    other = Columns(id="id", occurred_at="created_at", reported_at="other")
    names = {index_name(table, COLUMNS), index_name(table, other)}
    assert len(names) == 2
    assert all(len(name.encode()) <= 63 for name in names)


def test_names_with_quotes_and_capitals_are_adopted(
    database_url: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    connection.execute('ALTER TABLE usage_events RENAME TO "Usage Events"')
    connection.execute('ALTER TABLE "Usage Events" RENAME created_at TO "When?"')
    on_table(tmp_path, "Usage Events", "reported_at = 'Sent \"at\"'")
    file = tmp_path / "config.toml"
    file.write_text(file.read_text("utf-8").replace("created_at", "When?"), encoding="utf-8")
    settings = load_settings(config_file=file, environ={"DATABASE_URL": "postgresql:///x"}, flags={})
    adopt(database_url, connection, settings)
    assert failures(connection, settings) == []
    assert planner(connection, settings)().steps == ()
