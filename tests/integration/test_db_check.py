"""What of a database does not fit the configuration, told at once, a line each, with place and remedy."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meterctl.core.diagnosis import Status
from meterctl.errors import ConfigurationError, NotPermittedError
from meterctl.postgres.check import configuration_problems, misfits, require_fit
from meterctl.postgres.connect import connect
from meterctl.postgres.inspection import inspect_database
from meterctl.settings import Settings, load_settings
from roles import Roles, as_role, open_roles

CONFIG = """
[lookups.owner]
table = "subscriptions"
subject = "user_id"
customer = "stripe_customer_id"
id = "id"
started_at = "started_at"

[meters.x]
source = "rows"
formula = "sum"
table = "usage_events"
value = "quantity"
occurred_at = "created_at"
identifier = "{workspace_id}-{event_name}-{id}"
payers = [{ lookup = "owner", column = "user_id" }]
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as opened:
        yield opened


@pytest.fixture
def roles() -> Iterator[Roles]:
    with open_roles() as opened:
        yield opened


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def settings_of(config: Path, text: str = CONFIG) -> Settings:
    config.write_text(text, encoding="utf-8")
    return load_settings(config_file=config, environ={"DATABASE_URL": "postgresql:///x"}, flags={})


def problems(connection: psycopg.Connection, config: Path, text: str = CONFIG) -> list[str]:
    """Each line with the file's name cut off."""
    lines = configuration_problems(connection, settings_of(config, text))
    assert all(line.startswith(f"{config}: ") for line in lines)
    return [line.removeprefix(f"{config}: ") for line in lines]


def test_the_shipped_configuration_fits_the_shipped_tables(connection: psycopg.Connection) -> None:
    shipped = load_settings(config_file=None, environ={"DATABASE_URL": "postgresql:///x"}, flags={})
    assert configuration_problems(connection, shipped) == ()
    require_fit(connection, shipped, ["ai_suggestion"])


@pytest.mark.parametrize(
    ("written", "instead", "line"),
    [
        (
            'table = "usage_events"',
            'table = "usage_event"',
            'meters.x.table: there is no table "usage_event"; did you mean "usage_events"?',
        ),
        (
            'table = "subscriptions"',
            'table = "public.subscription"',
            'lookups.owner.table: there is no table "public.subscription"; did you mean "subscriptions"?',
        ),
        (
            'value = "quantity"',
            'value = "quantty"',
            'meters.x.value: there is no column "quantty" in usage_events; did you mean "quantity"?',
        ),
        (
            'value = "quantity"',
            'value = "event_type"',
            (
                'meters.x.value: "event_type" of usage_events is text, must be a number (smallint, integer, bigint, '
                "numeric, real or double precision); name another column, or a view with a cast"
            ),
        ),
        (
            'value = "quantity"',
            'value = "quantity"\nid = "created_at"',
            (
                'meters.x.id: "created_at" of usage_events is timestamp with time zone, must be smallint, '
                "integer, bigint, uuid, text or character varying; name another column, or a view with a cast"
            ),
        ),
        (
            'value = "quantity"',
            'value = "quantity"\nreported_at = "sent_at"',
            (
                'meters.x.reported_at: there is no column "sent_at" in usage_events; add it: '
                "meterctl db adopt usage_events"
            ),
        ),
        (
            "{workspace_id}",
            "{workspce_id}",
            'meters.x.identifier: there is no column "workspce_id" in usage_events; did you mean "workspace_id"?',
        ),
        (
            'column = "user_id"',
            'column = "usr_id"',
            'meters.x.payers[0].column: there is no column "usr_id" in usage_events; did you mean "user_id"?',
        ),
        (
            'id = "id"',
            'id = "ident"',
            (
                'lookups.owner.id: there is no column "ident" in subscriptions; known: id, user_id, organization_id, '
                "stripe_customer_id, stripe_subscription_id, status, started_at, ended_at, current_period_start, "
                "current_period_end, stripe_event_at"
            ),
        ),
        (
            'started_at = "started_at"',
            'started_at = "status"',
            (
                'lookups.owner.started_at: "status" of subscriptions is text; make it timestamp with time zone, or '
                "name a view that converts it"
            ),
        ),
    ],
)
def test_each_misfit_is_one_line_with_place_and_remedy(
    connection: psycopg.Connection, config: Path, written: str, instead: str, line: str
) -> None:
    assert written in CONFIG
    assert problems(connection, config, CONFIG.replace(written, instead, 1)) == [line]


def test_all_misfits_of_all_meters_are_told_at_once(connection: psycopg.Connection, config: Path) -> None:
    second = (
        CONFIG[CONFIG.index("[meters.x]") :].replace("meters.x", "meters.y").replace("{workspace_id}-", "y-{nope}-")
    )
    text = CONFIG.replace("quantity", "quantty").replace("started_at =", "ended_at =") + second
    text = text.replace('"started_at"', '"strted_at"') + "where = \"event_type = 'b'\"\n"
    text = text.replace("[meters.y]", "where = \"event_type = 'a'\"\n[meters.y]")
    places = [line.split(": ")[0] for line in problems(connection, config, text)]
    assert places == ["meters.x.value", "meters.y.identifier", "lookups.owner.ended_at"]


def test_disabled_meters_and_meters_not_asked_for_are_not_looked_at(
    connection: psycopg.Connection, config: Path
) -> None:
    second = CONFIG[CONFIG.index("[meters.x]") :].replace("meters.x", "meters.y").replace("usage_events", "nowhere")
    second = second.replace("{workspace_id}", "y-{workspace_id}")
    settings = settings_of(config, CONFIG + second)
    assert configuration_problems(connection, settings, keys=["x"]) == ()
    assert len(configuration_problems(connection, settings, keys=["y"])) == 1
    assert problems(connection, config, CONFIG + second.replace("formula", "enabled = false\nformula")) == []


def test_instants_without_time_zone_are_refused(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE usage_events ALTER created_at TYPE timestamp")
    connection.execute("ALTER TABLE subscriptions ALTER started_at TYPE date")
    assert problems(connection, config) == [
        (
            'meters.x.occurred_at: "created_at" of usage_events is timestamp without time zone, which names no '
            'instant; name its zone (time_zone = "UTC", "Europe/Berlin", ...), or make it timestamp with time zone'
        ),
        (
            'lookups.owner.started_at: "started_at" of subscriptions is date, which names no instant; '
            "make it timestamp with time zone, or name a view that converts it"
        ),
    ]


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint", "uuid", "text", "character varying(40)", "own_id"])
def test_ids_of_these_types_fit(connection: psycopg.Connection, config: Path, kind: str) -> None:
    """A domain counts as the type below it."""
    connection.execute("CREATE DOMAIN own_id AS bigint")
    connection.execute("ALTER TABLE usage_events DROP COLUMN id")
    connection.execute(f"ALTER TABLE usage_events ADD COLUMN id {kind}")
    assert problems(connection, config) == []


@pytest.mark.parametrize("kind", ["numeric(12,0)", "character(36)", "jsonb", "bytea", "timestamptz"])
def test_ids_of_other_types_are_refused(connection: psycopg.Connection, config: Path, kind: str) -> None:
    connection.execute("ALTER TABLE usage_events DROP COLUMN id")
    connection.execute(f"ALTER TABLE usage_events ADD COLUMN id {kind}")
    assert [line.split(": ")[0] for line in problems(connection, config)] == ["meters.x.id"]


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint", "numeric", "real", "double precision"])
def test_values_of_these_types_fit(connection: psycopg.Connection, config: Path, kind: str) -> None:
    connection.execute(f"ALTER TABLE usage_events ALTER quantity TYPE {kind}")
    assert problems(connection, config) == []


def test_a_payer_that_cannot_be_compared_names_both_types_and_the_cast(
    connection: psycopg.Connection, config: Path
) -> None:
    connection.execute("ALTER TABLE subscriptions ALTER user_id TYPE uuid USING user_id::uuid")
    assert problems(connection, config) == [
        (
            'meters.x.payers[0].column: "user_id" of usage_events is text, "user_id" of subscriptions '
            "(lookups.owner.subject) is uuid, and PostgreSQL cannot compare them; name a view of subscriptions with "
            "user_id::text instead"
        )
    ]


def test_types_that_compare_by_an_implicit_cast_fit(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE subscriptions ALTER user_id TYPE name")
    assert problems(connection, config) == []


def test_a_broken_condition_shows_what_postgresql_says(connection: psycopg.Connection, config: Path) -> None:
    assert problems(connection, config, CONFIG + "where = \"evnt_type = 'a'\"\n") == [
        (
            'meters.x.where: PostgreSQL refuses it: column "evnt_type" does not exist '
            '(Perhaps you meant to reference the column "u.event_type")'
        )
    ]
    assert problems(connection, config, CONFIG + 'where = "event_type ="\n') == [
        'meters.x.where: PostgreSQL refuses it: syntax error at or near ")"'
    ]
    assert problems(connection, config, CONFIG + 'where = "quantity"\n') == [
        "meters.x.where: PostgreSQL refuses it: argument of WHERE must be type boolean, not type numeric"
    ]


@pytest.mark.parametrize("where", ["event_type LIKE '50%'", "event_type = 'a' OR true -- why not"])
def test_a_condition_may_hold_percent_signs_and_a_comment(
    connection: psycopg.Connection, config: Path, where: str
) -> None:
    assert problems(connection, config, CONFIG + f'where = "{where}"\n') == []


def test_a_condition_changes_nothing(connection: psycopg.Connection, config: Path) -> None:
    """It is planned, never run, and in a transaction that PostgreSQL holds read-only."""
    where = "pg_advisory_lock(7) IS NOT NULL"
    assert problems(connection, config, CONFIG + f'where = "{where}"\n') == []
    row = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
    assert row == (0,)


def test_what_only_the_plan_reveals_is_told_too(connection: psycopg.Connection, config: Path) -> None:
    """A tie-break that has no order: nothing in the catalogs says so in advance."""
    connection.execute("ALTER TABLE subscriptions ADD COLUMN spot point")
    (line,) = problems(connection, config, CONFIG.replace('id = "id"', 'id = "spot"', 1))
    assert line.startswith("meters.x.table: PostgreSQL refuses it: could not identify an ordering operator")


def test_a_table_outside_of_the_search_path_is_suggested_in_full(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("CREATE SCHEMA billing; ALTER TABLE usage_events SET SCHEMA billing")
    assert problems(connection, config) == [
        'meters.x.table: there is no table "usage_events" on the search path; did you mean "billing.usage_events"?'
    ]
    assert problems(connection, config, CONFIG.replace('"usage_events"', '"billing.usage_events"')) == []


def test_a_view_with_the_columns_fits(connection: psycopg.Connection, config: Path) -> None:
    connection.execute('CREATE VIEW "Usage" AS SELECT * FROM usage_events')
    assert problems(connection, config, CONFIG.replace('"usage_events"', '"Usage"')) == []


@pytest.mark.parametrize(
    ("ddl", "reason"),
    [
        ("CREATE MATERIALIZED VIEW v AS SELECT * FROM usage_events", "a materialized view"),
        ("CREATE VIEW v AS SELECT DISTINCT * FROM usage_events", "a view that does not let it be updated"),
    ],
)
def test_what_cannot_be_stamped_is_refused(connection: psycopg.Connection, config: Path, ddl: str, reason: str) -> None:
    connection.execute(ddl)
    (line,) = problems(connection, config, CONFIG.replace('"usage_events"', '"v"'))
    assert line.startswith('meters.x.reported_at: "stripe_reported_at" cannot be updated')
    assert reason in line


def test_a_view_without_the_column_says_where_it_must_come_from(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("CREATE VIEW v AS SELECT id, workspace_id, user_id, quantity, created_at FROM usage_events")
    (line,) = problems(connection, config, CONFIG.replace('"usage_events"', '"v"'))
    assert line.endswith("add it to the table below (timestamptz) and to the view")


def test_lacking_privileges_alone_are_77_and_the_named_grants_mend_them(
    database_url: str, connection: psycopg.Connection, config: Path, roles: Roles
) -> None:
    """The lines are carried out to the letter; then the role can do all a run does."""
    role = roles.create(database_url)
    settings = settings_of(config, CONFIG + "where = \"event_type <> 'free'\"\n")
    with connect(as_role(database_url, role)) as job:
        with pytest.raises(NotPermittedError) as caught:
            require_fit(job, settings, ["x"])
        text = str(caught.value)
        assert f"role {role} may not update stripe_reported_at of usage_events" in text
        for _ in range(3):  # what a condition reads shows only when the rest may be read
            for misfit in misfits(job, settings):
                connection.execute(misfit.line[misfit.line.index("GRANT") :])
        require_fit(job, settings, ["x"])
        job.execute("SELECT id FROM usage_events FOR NO KEY UPDATE SKIP LOCKED")
        job.execute("UPDATE usage_events SET stripe_reported_at = now()")
        job.execute("INSERT INTO meterctl.identity (account, livemode, since) VALUES ('acct_1', false, now())")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            job.execute("UPDATE usage_events SET quantity = 2")


def test_lacking_privileges_beside_something_else_are_78(database_url: str, config: Path, roles: Roles) -> None:
    role = roles.create(database_url)
    with connect(as_role(database_url, role)) as job, pytest.raises(ConfigurationError) as caught:
        require_fit(job, settings_of(config, CONFIG.replace('"quantity"', '"quantty"')), ["x"])
    assert any("quantty" in line for line in caught.value.problems)
    assert any("GRANT SELECT" in line for line in caught.value.problems)


@pytest.mark.parametrize("table", ["usage_events", "app.usage_events"])
def test_a_schema_without_usage_is_a_privilege_whichever_way_it_is_named(
    database_url: str, connection: psycopg.Connection, config: Path, roles: Roles, table: str
) -> None:
    role = roles.create(database_url)
    connection.execute("CREATE SCHEMA app; ALTER TABLE usage_events SET SCHEMA app")
    connection.execute(f"GRANT USAGE ON SCHEMA meterctl TO {role}")
    connection.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA meterctl TO {role}")
    connection.execute(f"GRANT DELETE ON meterctl.usage_outbox, meterctl.usage_keys TO {role}")
    connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA app, public TO {role}")
    connection.execute(f"ALTER ROLE {role} SET search_path = app, public")
    settings = settings_of(config, CONFIG.replace('"usage_events"', f'"{table}"'))
    with connect(as_role(database_url, role)) as job:
        (misfit,) = misfits(job, settings)
        assert misfit.privilege
        assert misfit.line.endswith(f"GRANT USAGE ON SCHEMA app TO {role};")
        connection.execute(f"GRANT USAGE ON SCHEMA app TO {role}")
        assert misfits(job, settings) == ()


def test_a_check_is_a_handful_of_statements(connection: psycopg.Connection, config: Path, tmp_path: Path) -> None:
    """As many for a wide table as for a narrow one: every report makes it before it writes."""
    settings = settings_of(config, CONFIG + "where = \"event_type <> 'free'\"\n")
    narrow = statements_sent(connection, settings, tmp_path / "narrow")
    connection.execute("ALTER TABLE usage_events " + ", ".join(f"ADD COLUMN c{n} text" for n in range(100)))
    assert statements_sent(connection, settings, tmp_path / "wide") == narrow < 25


def statements_sent(connection: psycopg.Connection, settings: Settings, trace: Path) -> int:
    """As libpq itself counts them, BEGIN, SET LOCAL and SAVEPOINT included."""
    with trace.open("w") as file:
        connection.pgconn.trace(file.fileno())
        require_fit(connection, settings, ["x"])
        connection.pgconn.untrace()
    return sum("\tQuery\t" in line or "\tParse\t" in line for line in trace.read_text("utf-8").splitlines())


def findings(connection: psycopg.Connection, config: Path, status: Status, text: str = CONFIG) -> list[str]:
    found = inspect_database(connection, settings_of(config, text))
    return [finding.line for finding in found if finding.status is status]


def test_db_check_is_all_ok_on_the_shipped_tables(connection: psycopg.Connection, config: Path) -> None:
    assert findings(connection, config, Status.FAIL) == findings(connection, config, Status.WARN) == []
    assert any("index usage_events_unreported" in line for line in findings(connection, config, Status.OK))


@pytest.mark.parametrize(
    "definition",
    [
        "(created_at, id) WHERE stripe_reported_at IS NULL",
        "(created_at, id, user_id) WHERE stripe_reported_at IS NULL",
        "(created_at, id) INCLUDE (quantity) WHERE stripe_reported_at IS NULL",
        "(created_at DESC, id DESC) WHERE stripe_reported_at IS NULL",
    ],
)
def test_an_index_that_serves_is_recognised_whatever_its_name(
    connection: psycopg.Connection, config: Path, definition: str
) -> None:
    connection.execute("DROP INDEX usage_events_unreported")
    connection.execute(f"CREATE INDEX whatever ON usage_events {definition}")
    assert findings(connection, config, Status.FAIL) == []


@pytest.mark.parametrize(
    "definition",
    [
        "(created_at) WHERE stripe_reported_at IS NULL",
        "(id, created_at) WHERE stripe_reported_at IS NULL",
        "(created_at, id)",
        "(created_at, id DESC) WHERE stripe_reported_at IS NULL",
        "(created_at, id) WHERE stripe_reported_at IS NULL AND event_type = 'a'",
        "(created_at, id) WHERE stripe_reported_at IS NOT NULL",
    ],
)
def test_an_index_that_does_not_serve_fails_with_the_command(
    connection: psycopg.Connection, config: Path, definition: str
) -> None:
    connection.execute("DROP INDEX usage_events_unreported")
    connection.execute(f"CREATE INDEX usage_events_unreported ON usage_events {definition}")
    (line,) = findings(connection, config, Status.FAIL)
    assert line.endswith("meterctl db adopt usage_events")
    assert configuration_problems(connection, settings_of(config)) == ()  # slow, but no reason not to report


def test_an_invalid_leftover_is_named_with_what_drops_it(connection: psycopg.Connection, config: Path) -> None:
    """A UNIQUE index that cannot be is how CREATE INDEX CONCURRENTLY leaves one."""
    connection.execute("INSERT INTO usage_events (workspace_id, user_id) VALUES ('w', 'u'), ('w', 'u')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute('CREATE UNIQUE INDEX CONCURRENTLY "Left over" ON usage_events (user_id)')
    (line,) = findings(connection, config, Status.WARN)
    assert line.endswith('DROP INDEX CONCURRENTLY "public"."Left over";')
    connection.execute(line[line.index("DROP INDEX") :])
    assert findings(connection, config, Status.WARN) == []


def test_row_level_security_that_hides_rows_is_a_warning(
    database_url: str, connection: psycopg.Connection, config: Path, roles: Roles
) -> None:
    role = roles.create(database_url)
    connection.execute("ALTER TABLE usage_events ENABLE ROW LEVEL SECURITY")
    assert findings(connection, config, Status.WARN) == []
    with connect(as_role(database_url, role)) as job:
        lines = findings(job, config, Status.WARN)
    assert sum("row-level security" in line for line in lines) == 1


def test_an_empty_database_fails_with_everything(empty_database_url: str, config: Path) -> None:
    with connect(empty_database_url) as opened:
        lines = findings(opened, config, Status.FAIL)
    assert len(lines) == 3
    assert "meterctl db migrate" in lines[0]
