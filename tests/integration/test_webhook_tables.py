"""The tables that Stripe's events are about: what does not fit is told with its remedy, and what lacks can be added."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meterctl.core.diagnosis import Status
from meterctl.core.stripe_event import StripeEvent
from meterctl.errors import ConfigurationError, MeterctlError, NotPermittedError
from meterctl.postgres.adopt import Adoption
from meterctl.postgres.adopting import carry_out, require_rights
from meterctl.postgres.check import require_fit
from meterctl.postgres.connect import connect, transaction
from meterctl.postgres.inspection import inspect_database
from meterctl.postgres.migrate import ledger_grants
from meterctl.postgres.stripe_events import EventSelection, event_store
from meterctl.postgres.subscriptions import SubscriptionHandler
from meterctl.postgres.webhook_adopt import adoptable_tables, plan_webhooks
from meterctl.postgres.webhook_fit import require_events_fit, require_subscriptions_fit
from meterctl.settings import Settings, load_settings
from roles import as_role, open_roles
from subscription_events import changed, checkout

SUBSCRIPTIONS = """
[webhooks.subscriptions]
table = "subscriptions"
subscription = "stripe_subscription_id"
customer = "stripe_customer_id"
user = "user_id"
status = "status"
started_at = "started_at"
event_at = "stripe_event_at"
"""
EVENTS = '[webhooks]\nevents = "hooks"\n'
HOOKS = """
CREATE TABLE hooks (
    id bigserial PRIMARY KEY, event_id text NOT NULL, type varchar(80) NOT NULL, livemode boolean NOT NULL,
    created timestamptz NOT NULL, payload jsonb NOT NULL, note text
);
INSERT INTO hooks (event_id, type, livemode, created, payload) VALUES ('evt_old', 'x', false, now(), '{}');
"""
"""An endpoint's own table, before it is adopted."""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as opened:
        yield opened


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def shipped() -> Settings:
    return load_settings(config_file=None, environ={}, flags={}, require_database=False)


def settings_of(config: Path, text: str) -> Settings:
    config.write_text(text, encoding="utf-8")
    return load_settings(config_file=config, environ={}, flags={}, require_database=False)


def said(error: MeterctlError, config: Path) -> list[str]:
    """The lines of a refusal, without the file's name."""
    lines = error.problems if isinstance(error, ConfigurationError) else error.message.splitlines()[1:]
    return [line.strip().removeprefix(f"{config}: ") for line in lines]


def not_ok(connection: psycopg.Connection, settings: Settings) -> list[tuple[Status, str]]:
    found = inspect_database(connection, settings)
    return [(one.status, one.line.partition(": ")[2]) for one in found if one.status is not Status.OK]


def plan(connection: psycopg.Connection, settings: Settings, table: str | None = None) -> Adoption:
    return plan_webhooks(connection, settings, adoptable_tables(settings, table))


def adopt(url: str, connection: psycopg.Connection, settings: Settings) -> list[str]:
    """As the command does with --yes; the statements that were carried out."""
    shown = plan(connection, settings)
    require_rights(shown)
    carry_out(connection, url, shown, lambda: plan(connection, settings))
    return [statement for step in shown.steps for statement in step.statements]


# The table of subscriptions


def test_the_shipped_configuration_fits_the_shipped_tables(connection: psycopg.Connection) -> None:
    require_subscriptions_fit(connection, shipped())
    require_events_fit(connection, shipped())
    lines = [one.line for one in inspect_database(connection, shipped())]
    fits = "subscriptions has the columns, types and privileges that events need"
    assert f"shipped defaults: webhooks.subscriptions.table: {fits}" in lines


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "ALTER TABLE subscriptions RENAME TO abos",
            (
                'webhooks.subscriptions.table: there is no table "subscriptions"; known: abos, organizations, '
                "readings, sensors, usage_events"
            ),
        ),
        (
            "ALTER TABLE subscriptions RENAME stripe_subscription_id TO stripe_subscr_id",
            (
                'webhooks.subscriptions.subscription: there is no column "stripe_subscription_id" in subscriptions; '
                'did you mean "stripe_subscr_id"?'
            ),
        ),
        (
            "ALTER TABLE subscriptions DROP COLUMN stripe_event_at",
            (
                'webhooks.subscriptions.event_at: there is no column "stripe_event_at" in subscriptions; add it: '
                "meterctl db adopt subscriptions"
            ),
        ),
        (
            "ALTER TABLE subscriptions ALTER started_at TYPE timestamp",
            (
                'webhooks.subscriptions.started_at: "started_at" of subscriptions is timestamp without time zone; make '
                "it timestamp with time zone"
            ),
        ),
    ],
)
def test_what_does_not_fit_is_one_line_with_place_and_remedy(
    connection: psycopg.Connection, config: Path, change: str, line: str
) -> None:
    connection.execute(change)
    settings = settings_of(config, SUBSCRIPTIONS)
    with pytest.raises(ConfigurationError) as caught:
        require_subscriptions_fit(connection, settings)
    assert said(caught.value, config) == [line]
    assert caught.value.hint == "or leave the events of subscriptions out of webhooks.handle"
    assert (Status.FAIL, line) in not_ok(connection, settings)


def test_reports_do_without(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE subscriptions DROP COLUMN stripe_subscription_id")
    require_fit(connection, settings_of(config, SUBSCRIPTIONS))


def test_nothing_is_asked_of_a_table_that_no_event_keeps(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE subscriptions DROP COLUMN stripe_subscription_id")
    handle = '[webhooks]\nhandle = ["v1.billing.meter.no_meter_found"]\n'
    settings = settings_of(config, handle + SUBSCRIPTIONS)
    require_subscriptions_fit(connection, settings)
    assert not_ok(connection, settings) == []
    assert plan(connection, settings).steps == ()


def test_what_nobody_configured_is_no_failure_of_a_check(connection: psycopg.Connection) -> None:
    """Whoever only reports usage need not have such a table. To act on events all the same is refused."""
    connection.execute("ALTER TABLE subscriptions DROP COLUMN stripe_subscription_id")
    ((status, line),) = not_ok(connection, shipped())
    assert (status, "webhooks.subscriptions.subscription" in line) == (Status.WARN, True)
    assert plan(connection, shipped()).steps == ()
    with pytest.raises(ConfigurationError):
        require_subscriptions_fit(connection, shipped())


def test_what_must_be_filled_and_is_not_mapped_is_a_warning(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE subscriptions ADD COLUMN plan text NOT NULL, ADD COLUMN n int NOT NULL DEFAULT 1")
    settings = settings_of(config, SUBSCRIPTIONS)
    require_subscriptions_fit(connection, settings)
    ((status, line),) = not_ok(connection, settings)
    assert status is Status.WARN
    assert 'rows that meterctl adds to subscriptions would have nothing in "plan"; give it a default' in line


def test_rights_that_are_lacking_are_named_and_suffice(
    database_url: str, connection: psycopg.Connection, config: Path
) -> None:
    """Also that on the sequence of a serial column, and nothing beyond the columns that are mapped."""
    connection.execute("ALTER TABLE subscriptions ALTER id DROP IDENTITY; CREATE SEQUENCE abo_numbers")
    connection.execute("ALTER TABLE subscriptions ALTER id SET DEFAULT nextval('abo_numbers')")
    settings = settings_of(config, SUBSCRIPTIONS)
    with open_roles() as roles:
        role = roles.create(database_url)
        connection.execute(" ".join(ledger_grants(role)))
        with connect(as_role(database_url, role)) as poor:
            with pytest.raises(NotPermittedError) as caught:
                require_subscriptions_fit(poor, settings)
            lines = said(caught.value, config)
            assert [line.partition("; ")[0].partition(" may not ")[2].split()[0] for line in lines] == [
                *("read", "update", "insert", "count"),
            ]
            connection.execute(" ".join(line.partition("; ")[2] for line in lines))
            require_subscriptions_fit(poor, settings)
            assert settings.webhooks.subscriptions is not None
            handler = SubscriptionHandler(poor, settings.webhooks.subscriptions)
            for event in (checkout(at=1), changed(at=1), changed("past_due", at=2)):
                with transaction(poor):
                    handler.handle(event)
    assert connection.execute("SELECT status FROM subscriptions").fetchall() == [("past_due",)]


def test_the_instant_of_the_newest_event_can_be_added(
    database_url: str, connection: psycopg.Connection, config: Path
) -> None:
    connection.execute("ALTER TABLE subscriptions DROP COLUMN stripe_event_at")
    settings = settings_of(config, SUBSCRIPTIONS)
    added = ['ALTER TABLE "public"."subscriptions" ADD COLUMN "stripe_event_at" timestamptz;']
    assert adopt(database_url, connection, settings) == added
    require_subscriptions_fit(connection, settings)
    assert plan(connection, settings).steps == ()


def test_a_column_of_a_near_name_is_pointed_at(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE subscriptions RENAME stripe_event_at TO stripe_events_at")
    (note,) = plan(connection, settings_of(config, SUBSCRIPTIONS)).notes
    assert 'subscriptions has a column "stripe_events_at"' in note


def test_what_adopting_cannot_mend_is_refused(connection: psycopg.Connection, config: Path) -> None:
    connection.execute("ALTER TABLE subscriptions DROP COLUMN user_id")
    with pytest.raises(ConfigurationError) as caught:
        plan(connection, settings_of(config, SUBSCRIPTIONS))
    assert said(caught.value, config)[0].startswith('webhooks.subscriptions.user: there is no column "user_id"')


# The application's own table of events


def test_an_own_table_of_events_is_adopted_and_then_used(
    database_url: str, connection: psycopg.Connection, config: Path
) -> None:
    connection.execute(HOOKS)
    settings = settings_of(config, EVENTS)
    with pytest.raises(ConfigurationError) as caught:
        require_events_fit(connection, settings)
    assert '"event_id" is not unique in hooks; make it so: meterctl db adopt hooks' in str(caught.value.problems)
    assert caught.value.hint == "or leave webhooks.events out: meterctl has a table of its own"
    assert len(plan(connection, settings, "hooks").notes) == 1
    adopt(database_url, connection, settings)
    require_events_fit(connection, settings)
    assert not_ok(connection, settings) == []
    assert plan(connection, settings).steps == ()

    connection.execute(
        "INSERT INTO hooks (event_id, type, livemode, created, payload) SELECT 'evt_2', 'x', false, now(), '{}'"
    )
    store = event_store(connection, settings)
    assert store.store([changed(at=1, id="evt_1"), changed(at=1, id="evt_2")], source="pull") == ["evt_1"]
    assert set(store.ids(EventSelection(statuses=("received",)))) == {"evt_1", "evt_2"}
    assert store.ids(EventSelection(statuses=("processed",))) == ["evt_old"]
    acted = store.act(changed(at=1, id="evt_1"), lambda _: ("processed", "done"), again=False)
    assert (acted.status, len(store.shown(["evt_1"])), len(store.listed(EventSelection(), 9))) == ("processed", 1, 3)


def test_rights_on_an_own_table_are_named_and_suffice(
    database_url: str, connection: psycopg.Connection, config: Path
) -> None:
    connection.execute(HOOKS)
    settings = settings_of(config, EVENTS)
    adopt(database_url, connection, settings)
    with open_roles() as roles:
        role = roles.create(database_url)
        with connect(as_role(database_url, role)) as poor:
            with pytest.raises(NotPermittedError) as caught:
                require_events_fit(poor, settings)
            connection.execute(" ".join(line.partition("; ")[2] for line in said(caught.value, config)))
            require_events_fit(poor, settings)
            store = event_store(poor, settings)
            event = changed(at=1, id="evt_1")
            store.store([event], source="pull")
            store.act(event, _processed, again=False)
            store.fail("evt_1", "why", again=True)
            assert [row["status"] for row in store.shown(["evt_1"])] == ["failed"]


def _processed(event: StripeEvent) -> tuple[str, str]:
    return "processed", event.type


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("ALTER TABLE hooks DROP COLUMN payload", 'there is no column "payload" in hooks'),
        ("ALTER TABLE hooks ALTER payload TYPE text", '"payload" of hooks is text, must be jsonb'),
        ("ALTER TABLE hooks ALTER created TYPE timestamp", "make it timestamp with time zone"),
        ("ALTER TABLE hooks ADD COLUMN status integer", '"status" of hooks is integer, must be text'),
        ("ALTER TABLE hooks RENAME TO h; CREATE VIEW hooks AS SELECT * FROM h", "hooks is not a plain table"),
    ],
)
def test_what_an_own_table_must_have_cannot_be_added(
    connection: psycopg.Connection, config: Path, change: str, line: str
) -> None:
    connection.execute(HOOKS + change)
    settings = settings_of(config, EVENTS)
    for attempt in (plan, require_events_fit):
        with pytest.raises(ConfigurationError) as caught:
            attempt(connection, settings)
        assert any(one.startswith("webhooks.events: ") and line in one for one in said(caught.value, config))


def test_a_column_that_no_event_fills_is_refused(
    database_url: str, connection: psycopg.Connection, config: Path
) -> None:
    connection.execute(HOOKS.replace("note text", "tenant text NOT NULL").partition("INSERT")[0])
    settings = settings_of(config, EVENTS)
    adopt(database_url, connection, settings)
    with pytest.raises(ConfigurationError) as caught:
        require_events_fit(connection, settings)
    (line,) = said(caught.value, config)
    assert line == 'webhooks.events: "tenant" of hooks must not be NULL, and no event has it; give it a default'


def test_an_event_that_is_there_twice_is_named_and_what_was_begun_goes_on(
    database_url: str, connection: psycopg.Connection, config: Path
) -> None:
    connection.execute(HOOKS)
    copy = "SELECT event_id, type, livemode, created, payload FROM hooks"
    connection.execute(f"INSERT INTO hooks (event_id, type, livemode, created, payload) {copy}")
    settings = settings_of(config, EVENTS)
    with pytest.raises(ConfigurationError, match=r"\(event_id\)=\(evt_old\) is duplicated"):
        adopt(database_url, connection, settings)
    connection.execute("DELETE FROM hooks WHERE id = 2")
    done = adopt(database_url, connection, settings)
    assert [statement.split(" ON ")[0] for statement in done] == [
        'DROP INDEX CONCURRENTLY "public"."hooks_event_id";',
        'CREATE UNIQUE INDEX CONCURRENTLY "hooks_event_id"',
    ]
    require_events_fit(connection, settings)


@pytest.mark.parametrize(
    "constraint",
    [
        "CREATE UNIQUE INDEX ON hooks (event_id) WHERE livemode",
        "CREATE UNIQUE INDEX ON hooks (lower(event_id))",
        "CREATE UNIQUE INDEX ON hooks (event_id, type)",
        "ALTER TABLE hooks ADD UNIQUE (event_id) DEFERRABLE",
    ],
)
def test_what_is_not_unique_enough_does_not_count(
    database_url: str, connection: psycopg.Connection, config: Path, constraint: str
) -> None:
    connection.execute(HOOKS + constraint)
    done = adopt(database_url, connection, settings_of(config, EVENTS))
    assert done[-1] == 'CREATE UNIQUE INDEX CONCURRENTLY "hooks_event_id" ON "public"."hooks" ("event_id");'
