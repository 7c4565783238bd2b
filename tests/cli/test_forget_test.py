"""`meterctl db forget-test`: out of test mode, so that live mode bills every row once, and none of a predecessor's."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from cli.conftest import TIMEOUT_S, Finished, Shell
from roles import as_role, open_roles

REFUSALS = {
    "an error": "BEFORE UPDATE ON usage_events FOR EACH ROW WHEN (OLD.id = 3) EXECUTE FUNCTION refuse()",
    "a late error": "AFTER UPDATE ON usage_events DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW WHEN (OLD.id = 3) EXECUTE FUNCTION refuse()",
    "no word": "BEFORE UPDATE ON usage_events FOR EACH ROW WHEN (OLD.id = 3) EXECUTE FUNCTION ignore()",
    "the old stamp": "BEFORE UPDATE ON usage_events FOR EACH ROW WHEN (OLD.id = 3) EXECUTE FUNCTION put_back()",
}

FUNCTIONS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'row %% is closed', OLD.id; END $$;
CREATE FUNCTION ignore() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE FUNCTION put_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.stripe_reported_at := OLD.stripe_reported_at; RETURN NEW; END $$;
"""


def forget(shell: Shell, *arguments: str) -> Finished:
    return shell.run("db", "forget-test", *arguments)


def live(shell: Shell, *arguments: str) -> Finished:
    """Report in live mode, for real, against the local Stripe's live data."""
    return replace(shell, live=True).run("report-usage", "--live", *arguments)


def counts(shell: Shell) -> tuple[int, int, int, int]:
    """Events, runs, owners, stamped rows."""
    row: tuple[int, int, int, int] = shell.sql(
        "SELECT (SELECT count(*) FROM meterctl.meter_events), (SELECT count(*) FROM meterctl.runs),"
        " (SELECT count(*) FROM meterctl.identity), (SELECT count(stripe_reported_at) FROM usage_events)"
    )[0]
    return row


def half_forgotten(shell: Shell) -> int:
    """Rows that bear a stamp without an event, or have an accepted event without a stamp."""
    return int(
        shell.sql(
            "SELECT count(*) FROM usage_events AS u LEFT JOIN meterctl.meter_events AS e"
            " ON e.source_row_id = u.id::text AND e.state = 'accepted'"
            " WHERE (u.stripe_reported_at IS NULL) <> (e.id IS NULL)"
        )[0][0]
    )


def reported(shell: Shell, count: int = 5, *, customers: int = 2) -> None:
    """A test-mode ledger: `count` rows accepted and stamped. Stripe has customers and meter in live mode, too."""
    shell.usage(count, customers=customers)
    shell.stripe.create_meter(event_name="ai_suggestion", livemode=True)
    for n in range(1, customers + 1):
        shell.stripe.create_customer(f"cus_{n}", livemode=True)
    done = shell.run("report-usage")
    assert done.code == 0, done.stderr
    assert counts(shell) == (count, 1, 1, count)


def test_without_yes_it_shows_and_changes_nothing(shell: Shell) -> None:
    reported(shell)
    before = counts(shell)
    done = forget(shell)
    assert done.code == 0
    assert done.stdout.splitlines()[1].split() == ["ai_suggestion", "5", "5", "usage_events", "5"]
    assert f"1 runs; the ledger belongs to {shell.stripe.account_id} in test mode" in done.stdout
    assert "meterctl db forget-test --yes" in done.stderr
    assert counts(shell) == before


def test_a_new_ledger_has_nothing_to_forget(shell: Shell) -> None:
    shown, done = forget(shell), forget(shell, "--yes")
    assert (shown.code, shown.stderr, done.code, done.stderr) == (0, "", 0, "")
    assert shown.stdout == done.stdout == "there is nothing to forget: this ledger is new\n"


def test_after_it_live_mode_bills_every_row_once(shell: Shell) -> None:
    reported(shell, 5)
    refused = live(shell)
    assert (refused.code, shell.stripe.totals(livemode=True)) == (78, {}), "the ledger is bound to test mode"
    done = forget(shell, "--yes")
    assert (done.code, counts(shell)) == (0, (0, 0, 0, 0)), done.stderr
    assert "forgot 5 events and 1 runs, took 5 stamps off" in done.stderr
    for _ in range(2):
        night = live(shell)
        assert night.code == 0, night.stderr
    assert sum(shell.stripe.totals(livemode=True).values()) == 5
    assert shell.sql("SELECT account, livemode FROM meterctl.identity") == [(shell.stripe.account_id, True)]
    assert counts(shell)[3] == 5
    assert half_forgotten(shell) == 0


def test_rows_of_the_predecessor_keep_their_stamps(shell: Shell) -> None:
    shell.sql(
        "INSERT INTO usage_events (workspace_id, user_id, created_at, stripe_reported_at)"
        " SELECT 'ws', 'u1', now() - interval '1 day', now() - interval '20 hours' FROM generate_series(1, 3)"
    )
    before = shell.sql("SELECT id, stripe_reported_at FROM usage_events ORDER BY id")
    shell.usage(4)
    assert shell.run("report-usage").code == 0
    assert forget(shell, "-y").code == 0
    after = shell.sql(
        "SELECT id, stripe_reported_at FROM usage_events WHERE stripe_reported_at IS NOT NULL ORDER BY id"
    )
    assert after == before
    assert live(shell, "--dry-run", "--json").document["totals"]["remaining"] == 4


def test_a_stamp_older_than_the_acceptance_is_somebody_elses_and_stays(shell: Shell) -> None:
    reported(shell, 3)
    shell.sql("UPDATE usage_events SET stripe_reported_at = stripe_reported_at - interval '1 minute' WHERE id = 2")
    done = forget(shell, "--yes")
    assert (done.code, counts(shell)) == (0, (0, 0, 0, 1))
    assert "note: ai_suggestion: 1 rows were stamped before their test event was accepted" in done.stderr
    assert "(e.g. 2)" in done.stderr


@pytest.mark.long
def test_a_column_that_keeps_whole_seconds_loses_its_stamps_too(shell: Shell) -> None:
    shell.sql("ALTER TABLE usage_events ALTER stripe_reported_at TYPE timestamptz(0)")
    reported(shell)
    shell.sql("UPDATE meterctl.meter_events SET accepted_at = date_trunc('second', accepted_at) + interval '400 ms'")
    shell.sql(
        "UPDATE usage_events AS u SET stripe_reported_at = e.accepted_at FROM meterctl.meter_events AS e"
        " WHERE e.source_row_id = u.id::text"
    )
    assert shell.sql("SELECT FROM usage_events, meterctl.meter_events WHERE stripe_reported_at >= accepted_at") == []
    assert (forget(shell, "--yes").code, counts(shell)) == (0, (0, 0, 0, 0))


@pytest.mark.long
@pytest.mark.parametrize(
    "made_live",
    [
        "UPDATE meterctl.identity SET livemode = true",
        "UPDATE meterctl.meter_events SET livemode = true WHERE source_row_id = '2'",
        "UPDATE meterctl.runs SET mode = 'live'; DELETE FROM meterctl.identity",
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--yes",)])
def test_a_live_ledger_is_78_and_untouched(shell: Shell, made_live: str, arguments: tuple[str, ...]) -> None:
    reported(shell)
    shell.sql(made_live)
    before = counts(shell)
    done = forget(shell, *arguments)
    assert (done.code, done.stdout) == (78, "")
    assert "live mode; what was billed is never forgotten" in done.stderr
    assert counts(shell) == before


def test_a_ledger_that_live_mode_wrote_is_78(shell: Shell) -> None:
    reported(shell)
    assert forget(shell, "--yes").code == 0
    assert live(shell).code == 0
    before = counts(shell)
    assert (forget(shell, "--yes").code, counts(shell)) == (78, before)


@pytest.mark.parametrize("locked", ["ai_suggestion", "former_name"])
def test_a_running_report_is_75_and_named(shell: Shell, locked: str) -> None:
    """Also where only the ledger knows the meter's name: another configuration may be at work."""
    reported(shell)
    shell.sql("UPDATE meterctl.meter_events SET event_name = 'former_name' WHERE source_row_id = '2'")
    before = counts(shell)
    with psycopg.connect(shell.database_url, application_name="meterctl 4711@elsewhere") as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:' || %s, 0))", [locked])
        done = forget(shell, "--yes")
    assert done.code == 75
    assert f"{locked}: locked by meterctl 4711@elsewhere" in done.stderr
    assert counts(shell) == before


@pytest.mark.long
def test_a_report_that_waits_for_its_lock_is_75_and_named(shell: Shell) -> None:
    """It has found the ledger to be its own already, and would go on with one that has no owner."""
    reported(shell)
    with psycopg.connect(shell.database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:ai_suggestion', 0))")
        child = shell.start("report-usage", "--lock-timeout", "60s")
        wait_until(lambda: counts(shell)[1] == 2)
        done = forget(shell, "--yes")
    child.communicate(timeout=TIMEOUT_S)
    assert done.code == 75
    assert f"a report is under way: meterctl {child.pid}@" in done.stderr
    assert (child.returncode, counts(shell)) == (0, (5, 2, 1, 5))


def test_a_run_that_died_is_no_hindrance(shell: Shell) -> None:
    reported(shell)
    shell.sql("UPDATE meterctl.runs SET finished_at = NULL, exit_code = NULL")
    assert (forget(shell, "--yes").code, counts(shell)) == (0, (0, 0, 0, 0))


def config(tmp_path: Path, **changes: str) -> str:
    """A configuration whose one meter is like the shipped one; `key` is its name."""
    keys = {"table": "usage_events", "reported_at": "stripe_reported_at", "id": "id"} | changes
    name = keys.pop("key", "ai_suggestion")
    lines = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    path = tmp_path / "meterctl.toml"
    path.write_text(
        '[lookups.own]\ntable = "subscriptions"\nsubject = "user_id"\ncustomer = "stripe_customer_id"\n'
        f'[meters.{name}]\nsource = "rows"\nformula = "sum"\nevent_name = "ai_suggestion"\nvalue = "quantity"\n'
        f'occurred_at = "created_at"\npayers = [{{ lookup = "own", column = "user_id" }}]\n{lines}'
    )
    return str(path)


def test_stamped_rows_of_a_meter_no_longer_configured_are_78(shell: Shell, tmp_path: Path) -> None:
    reported(shell)
    before = counts(shell)
    done = shell.run("-c", config(tmp_path, key="suggestions"), "db", "forget-test", "--yes")
    assert (done.code, counts(shell)) == (78, before)
    assert "meters.ai_suggestion: not configured" in done.stderr


def test_a_meter_no_longer_configured_does_not_matter_where_nothing_was_accepted(shell: Shell, tmp_path: Path) -> None:
    shell.usage(2, known=False)
    assert shell.run("report-usage").code == 10
    done = shell.run("-c", config(tmp_path, key="suggestions"), "db", "forget-test", "--yes")
    assert (done.code, counts(shell)) == (0, (0, 0, 0, 0))


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "usage_event"}, 'there is no table "usage_event"; did you mean "usage_events"?'),
        ({"reported_at": "reported_at"}, 'there is no column "reported_at" in usage_events'),
        ({"table": "readings", "reported_at": "recorded_at"}, 'there is no column "created_at" in readings'),
        ({"id": "created_at"}, '"created_at" of usage_events is timestamp with time zone, must be'),
    ],
)
def test_a_table_whose_stamps_cannot_be_taken_off_is_78(
    shell: Shell, tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    reported(shell)
    before = counts(shell)
    done = shell.run("-c", config(tmp_path, **changes), "db", "forget-test", "--yes")
    assert (done.code, counts(shell)) == (78, before)
    assert said in done.stderr


@pytest.mark.long
def test_row_ids_of_another_kind_are_78(shell: Shell) -> None:
    reported(shell)
    shell.sql("UPDATE meterctl.meter_events SET source_row_id = 'r-' || source_row_id")
    before = counts(shell)
    done = forget(shell, "--yes")
    assert (done.code, counts(shell)) == (78, before), done.stderr
    assert "the rows of meter ai_suggestion are not found in usage_events" in done.stderr


def wait_until(true: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


@pytest.mark.long
def test_killed_between_batches_nothing_is_half_forgotten_and_running_again_ends_the_same(shell: Shell) -> None:
    reported(shell, 600, customers=40)
    shell.sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE UPDATE ON usage_events FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    child = shell.start("db", "forget-test", "--yes")
    wait_until(lambda: counts(shell)[0] <= 100)
    child.kill()
    child.communicate()
    wait_until(lambda: not shell.sql("SELECT FROM pg_stat_activity WHERE application_name LIKE 'meterctl %%@%%'"))
    events, _, owners, stamped = counts(shell)
    assert 0 < events == stamped < 600, "it died in the middle of the work"
    assert (owners, half_forgotten(shell)) == (1, 0)
    assert live(shell).code == 78, "still in test mode"
    shell.sql("DROP TRIGGER slow ON usage_events")
    assert (forget(shell, "--yes").code, counts(shell)) == (0, (0, 0, 0, 0))
    assert live(shell).code == 0
    assert sum(shell.stripe.totals(livemode=True).values()) == 600


def test_rows_the_application_edited_or_deleted_meanwhile(shell: Shell) -> None:
    reported(shell, 6)
    shell.sql(
        "UPDATE usage_events SET quantity = 7, user_id = 'free' WHERE id = 1;"
        "UPDATE usage_events SET created_at = created_at - interval '1 minute' WHERE id = 2;"
        "DELETE FROM usage_events WHERE id = 3;"
        "UPDATE usage_events SET stripe_reported_at = NULL WHERE id = 4"
    )
    shown = forget(shell)
    assert "1 rows are not in the table any more (e.g. 3)" in shown.stderr
    done = forget(shell, "--yes", "--json")
    assert (done.code, counts(shell)) == (0, (0, 0, 0, 0))
    assert done.document["done"]["stamps"] == 4


def test_another_row_under_the_id_of_a_billed_one_keeps_event_and_stamp(shell: Shell) -> None:
    """Whose stamp it is cannot be told, so nothing is decided: the event stays, by name."""
    reported(shell, 3)
    shell.sql(
        "UPDATE usage_events SET created_at = now() - interval '1 minute',"
        " stripe_reported_at = now() + interval '1 hour' WHERE id = 2"
    )
    done = forget(shell, "--yes")
    assert (done.code, counts(shell)) == (10, (1, 1, 1, 1))
    assert "row 2 stays: the row has another time than what was billed" in done.stderr
    shell.sql("UPDATE usage_events SET stripe_reported_at = NULL WHERE id = 2")
    assert (forget(shell, "--yes").code, counts(shell)) == (0, (0, 0, 0, 0))


@pytest.mark.parametrize("how", REFUSALS)
def test_a_row_whose_stamp_refuses_to_go_keeps_its_event_and_test_mode(shell: Shell, how: str) -> None:
    reported(shell, 6)
    constraint = "CONSTRAINT " if "DEFERRED" in REFUSALS[how] else ""
    shell.sql(f"{FUNCTIONS}; CREATE {constraint}TRIGGER closed {REFUSALS[how]}")
    done = forget(shell, "--yes")
    assert (done.code, counts(shell)) == (10, (1, 1, 1, 1)), done.stderr
    assert "row 3 stays: " in done.stderr
    assert "1 events stay, and with them test mode" in done.stderr
    assert shell.sql("SELECT source_row_id FROM meterctl.meter_events") == [("3",)]
    assert (half_forgotten(shell), live(shell).code) == (0, 78)
    shell.sql("DROP TRIGGER closed ON usage_events")
    assert (forget(shell, "--yes").code, counts(shell)) == (0, (0, 0, 0, 0))


def test_a_row_locked_by_the_application_stays_for_the_next_time(shell: Shell) -> None:
    reported(shell, 4)
    with psycopg.connect(shell.database_url) as application:
        application.execute("SELECT FROM usage_events WHERE id = 2 FOR UPDATE")
        done = forget(shell, "--yes")
    assert (done.code, counts(shell)) == (10, (1, 1, 1, 1))
    assert "row 2 stays: the stamp stays: another transaction has the row locked" in done.stderr
    assert (forget(shell, "--yes").code, counts(shell)) == (0, (0, 0, 0, 0))


@pytest.mark.long
def test_a_row_that_a_view_hides_keeps_its_event(shell: Shell, tmp_path: Path) -> None:
    reported(shell, 4)
    shell.sql("CREATE VIEW recent_usage AS SELECT * FROM usage_events WHERE id <> 2")
    done = shell.run("-c", config(tmp_path, table="recent_usage"), "db", "forget-test", "--yes")
    assert (done.code, counts(shell)) == (10, (1, 1, 1, 1))
    assert "row 2 stays: the row is not visible here" in done.stderr


def test_rejected_and_replaced_events_go_too(shell: Shell) -> None:
    shell.usage(3, known=False)
    assert shell.run("report-usage").code == 10
    assert shell.run("ledger", "retry", "--code", "resource_missing", "--reason", "test", "--yes").code == 0
    shell.stripe.create_customer("cus_1")
    assert shell.run("report-usage").code == 0
    states = shell.sql("SELECT state, count(*) FROM meterctl.meter_events GROUP BY 1 ORDER BY 1")
    assert states == [("accepted", 3), ("replaced", 3)]
    done = forget(shell, "--yes", "--json")
    assert (done.code, counts(shell)) == (0, (0, 0, 0, 0))
    assert (done.document["done"]["events"], done.document["done"]["stamps"]) == (6, 3)


def test_an_event_that_stays_keeps_those_it_replaced(shell: Shell) -> None:
    shell.usage(3, known=False)
    assert shell.run("report-usage").code == 10
    assert shell.run("ledger", "retry", "--code", "resource_missing", "--reason", "test", "--yes").code == 0
    shell.stripe.create_customer("cus_1")
    assert shell.run("report-usage").code == 0
    shell.sql(f"{FUNCTIONS}; CREATE TRIGGER closed {REFUSALS['an error']}")
    assert (forget(shell, "--yes").code, counts(shell)) == (10, (2, 2, 1, 1))


def test_json_is_one_document_with_pinned_keys(shell: Shell) -> None:
    reported(shell, 5)
    shown, done = forget(shell, "--json").document, forget(shell, "--yes", "--json").document
    assert list(shown) == ["schema", "exit_code", "account", "runs", "meters", "done"]
    assert (shown["schema"], shown["exit_code"], shown["done"]) == ("meterctl.db_forget_test/1", 0, None)
    assert shown["meters"] == [
        {
            "meter": "ai_suggestion",
            "events": 5,
            "units": "5",
            "table": "usage_events",
            "rows": {"stamped": 5, "unstamped": 0, "foreign": 0, "gone": 0, "changed": 0, "unseen": 0},
        }
    ]
    assert done["done"] == {
        "events": 5,
        "stamps": 5,
        "runs": 1,
        "left_test_mode": True,
        "kept": 0,
        "kept_samples": [],
    }


def test_a_role_that_may_not_delete_is_77_with_the_grant(shell: Shell) -> None:
    reported(shell)
    owners = shell.database_url
    with open_roles() as roles:
        role = roles.create(owners)
        shell.sql(
            f"GRANT USAGE ON SCHEMA meterctl TO {role}; GRANT SELECT ON usage_events TO {role};"
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA meterctl TO {role}"
        )
        shell.database_url = as_role(owners, role)
        done = forget(shell, "--yes")
        assert done.code == 77
        grant = done.stderr[done.stderr.index("GRANT DELETE") :]
        shell.database_url = owners
        shell.sql(grant)
        shell.database_url = as_role(owners, role)
        done = forget(shell, "--yes")
        assert (done.code, "GRANT UPDATE" in done.stderr) == (77, True)
        shell.database_url = owners
        shell.sql(done.stderr[done.stderr.index("GRANT UPDATE") :])
        shell.database_url = as_role(owners, role)
        assert forget(shell, "--yes").code == 0
        shell.database_url = owners
        assert counts(shell) == (0, 0, 0, 0)
