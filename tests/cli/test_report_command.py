"""`meterctl report-usage` as cron sees it: exit codes, stdout, stderr."""

import json
import re
import signal
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from cli.conftest import Shell
from meterctl.sandbox.local_stripe import Fault, FaultKind

TOTALS = [
    "total",
    "reported",
    "duplicate",
    "late",
    "skipped",
    "rejected",
    "failed",
    "expired",
    "held",
    "remaining",
    "units",
]


def test_a_good_night_prints_one_line_and_logs_one(shell: Shell) -> None:
    shell.usage(3, quantity=2)
    done = shell.run("report-usage")
    assert done.code == 0
    canonical = json.loads(done.stderr)
    assert (canonical["event"], canonical["reported"], canonical["units"]) == ("run_finished", 3, "6")
    assert done.stdout == "report-usage: total 3, reported 3, units 6\n"
    assert shell.total == 6


def test_quiet_and_well_is_zero_bytes(shell: Shell) -> None:
    shell.usage(3)
    done = shell.run("report", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert shell.total == 3


def test_nothing_to_do_is_fine(shell: Shell) -> None:
    done = shell.run("report-usage")
    assert (done.code, done.stdout) == (0, "report-usage: total 0, reported 0, units 0\n")


def test_json_is_one_document_with_pinned_keys(shell: Shell) -> None:
    shell.usage(2)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'u1', 'NaN')")
    done = shell.run("report-usage", "--json")
    document = done.document
    assert done.code == document["exit_code"] == 10
    assert list(document) == [
        "schema",
        "run_id",
        "command",
        "mode",
        "dry_run",
        "started_at",
        "finished_at",
        "exit_code",
        "totals",
        "meters",
        "problems",
    ]
    assert document["schema"] == "meterctl.report/1"
    assert list(document["totals"]) == TOTALS
    assert list(document["meters"][0]) == ["event_name", *TOTALS]
    totals = document["totals"]
    assert totals["total"] == sum(totals[k] for k in ("reported", "skipped", "rejected", "failed", "expired", "held"))
    assert totals["units"] == "2"
    assert [list(p) for p in document["problems"]] == [["code", "count", "sample_ids", "hint"]]


def test_a_dry_run_writes_and_sends_nothing(shell: Shell) -> None:
    shell.usage(3, quantity=5)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id) VALUES ('ws', 'free')")
    done = shell.run("report-usage", "--dry-run", "--json")
    plan = done.document["plan"][0]
    assert (done.code, plan["events"], plan["units"], plan["customers"]) == (0, 3, "15", 1)
    assert (done.document["totals"]["skipped"], done.document["totals"]["remaining"]) == (1, 3)
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events")[0][0] == 0
    assert shell.sql("SELECT count(*) FROM meterctl.runs")[0][0] == 0
    assert shell.stripe.requests() == []
    assert "would send 3 events, 15 units, 1 customers" in shell.run("report-usage", "-n").stdout


def test_without_a_key_it_counts_and_writes_nothing(shell: Shell) -> None:
    shell.usage(3)
    shell.extra = {"STRIPE_SECRET_KEY": "", "METERCTL_STRIPE_API_BASE": ""}
    done = shell.run("report-usage")
    assert done.code == 0
    assert "stripe_not_configured" in done.stderr
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events")[0][0] == 0
    required = shell.run("report-usage", "--require-stripe")
    assert (required.code, required.stdout) == (78, "")
    assert "STRIPE_SECRET_KEY" in required.stderr


def test_problems_end_with_10_and_name_rows_and_remedy(shell: Shell) -> None:
    shell.usage(2, known=False)
    done = shell.run("report-usage", "-q")
    assert (done.code, done.stdout) == (10, "")
    assert "2 resource_missing" in done.stderr
    assert "meterctl ledger retry --code resource_missing" in done.stderr


def test_an_unknown_option_is_2(shell: Shell) -> None:
    assert shell.run("report-usage", "--nonsense").code == 2
    assert shell.run("report-usage", "--max-duration", "soon").code == 2
    assert shell.run("report-usage", "--meter", "nobody").code == 2


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/app", "postgresql:///app?host=/nonexistent"])
def test_postgresql_away_is_69(shell: Shell, url: str) -> None:
    shell.extra = {"DATABASE_URL": url}
    done = shell.run("report-usage")
    assert (done.code, done.stdout) == (69, "")
    assert "Traceback" not in done.stderr


def test_stripe_away_before_the_first_write_is_69(shell: Shell) -> None:
    shell.usage(1)
    shell.stripe.stop_listening()
    done = shell.run("report-usage")
    assert done.code == 69
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events")[0][0] == 0


@pytest.mark.parametrize(("kind", "status"), [(FaultKind.UNAUTHORIZED, 401), (FaultKind.FORBIDDEN, 403)])
def test_no_permission_in_mid_run_is_77_and_returns_the_events(shell: Shell, kind: FaultKind, status: int) -> None:
    shell.usage(5, customers=5)
    shell.stripe.add_fault(Fault(kind=kind, times=None))
    done = shell.run("report-usage")
    assert done.code == 77
    assert f"Stripe says {status}" in done.stderr
    assert {row[0] for row in shell.sql("SELECT state FROM meterctl.meter_events")} == {"pending"}
    shell.stripe.clear_faults()
    assert shell.run("report-usage").code == 0
    shell.assert_exact()


def test_a_refused_key_is_77(shell: Shell) -> None:
    shell.stripe.revoke_key(shell.stripe.api_key)
    done = shell.run("report-usage")
    assert done.code == 77
    assert "Stripe refuses the key" in done.stderr


def test_no_active_meter_is_78(shell: Shell) -> None:
    shell.usage(1)
    shell.extra = {"STRIPE_METER_EVENT_NAME": "unheard_of"}
    done = shell.run("report-usage")
    assert done.code == 78
    assert "no active meter" in done.stderr


def test_a_missing_schema_is_78_and_names_the_command(shell: Shell, empty_database_url: str) -> None:
    shell.extra = {"DATABASE_URL": empty_database_url}
    done = shell.run("report-usage")
    assert done.code == 78
    assert "meterctl db migrate" in done.stderr


@pytest.mark.parametrize("arguments", [("report-usage",), ("report-usage", "--dry-run")])
def test_a_live_key_must_be_meant(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.extra = {"STRIPE_SECRET_KEY": "sk_live_example", "METERCTL_STRIPE_API_BASE": ""}
    done = shell.run(*arguments)
    assert done.code == 78
    assert "--live" in done.stderr


def test_live_with_a_test_key_is_78(shell: Shell) -> None:
    done = shell.run("report-usage", "--live")
    assert done.code == 78
    assert shell.stripe.requests() == []


def test_another_accounts_ledger_is_78_before_the_first_write(shell: Shell) -> None:
    shell.usage(1)
    shell.sql("INSERT INTO meterctl.identity (account, livemode, since) VALUES ('acct_other', false, now())")
    done = shell.run("report-usage")
    assert done.code == 78
    assert "acct_other" in done.stderr
    assert shell.sql("SELECT count(*) FROM meterctl.meter_events")[0][0] == 0


def test_everything_wrong_with_the_tables_is_said_at_once(shell: Shell, tmp_path: Path) -> None:
    config = tmp_path / "meterctl.toml"
    config.write_text(
        '[meters.m]\nsource = "rows"\nformula = "sum"\ntable = "usage_event"\nvalue = "quantity"\n'
        'occurred_at = "created_at"\npayers = [{ lookup = "individual", column = "user_id" }]\n'
        '[meters.n]\nsource = "rows"\nformula = "sum"\ntable = "usage_events"\nvalue = "quantty"\n'
        'occurred_at = "created"\npayers = [{ lookup = "individual", column = "user_id" }]\n'
    )
    done = shell.run("-c", str(config), "report-usage")
    assert done.code == 78
    for expected in ("meters.m.table", "usage_events", "meters.n.value", "quantity", "meters.n.occurred_at"):
        assert expected in done.stderr


def test_an_unknown_key_is_78_with_a_suggestion(shell: Shell, tmp_path: Path) -> None:
    config = tmp_path / "meterctl.toml"
    config.write_text("[stripe]\ninvoice_grace = 2\n")
    done = shell.run("-c", str(config), "report-usage")
    assert done.code == 78
    assert "invoice_grace_h" in done.stderr


def test_a_held_lock_is_75_and_names_the_holder(shell: Shell) -> None:
    with psycopg.connect(shell.database_url, application_name="meterctl 4711@elsewhere") as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:ai_suggestion', 0))")
        done = shell.run("report-usage")
    assert done.code == 75
    assert "meterctl 4711@elsewhere" in done.stderr


def test_waiting_for_the_lock(shell: Shell) -> None:
    shell.usage(1)
    with psycopg.connect(shell.database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('meterctl:ai_suggestion', 0))")
        child = shell.start("report-usage", "--lock-timeout", "30s")
        time.sleep(2)
    child.communicate(timeout=30)
    assert (child.returncode, shell.total) == (0, 1)


def test_the_deadline_leaves_the_rest_and_is_69(shell: Shell) -> None:
    shell.usage(20, customers=1)
    shell.stripe.set_options(latency_ms=300)
    done = shell.run("report-usage", "--max-duration", "1s", "--json")
    assert done.code == 69
    totals = done.document["totals"]
    assert totals["reported"] + totals["remaining"] == 20
    assert totals["remaining"] > 0
    shell.stripe.set_options(latency_ms=0)
    assert shell.run("report-usage").code == 0
    assert shell.total == 20


def test_a_limit_is_0(shell: Shell) -> None:
    shell.usage(20, customers=4)
    done = shell.run("report-usage", "--limit", "7", "--json")
    assert (done.code, done.document["totals"]["reported"], done.document["totals"]["remaining"]) == (0, 7, 13)
    assert shell.total == 7


def test_two_runs_at_once_bill_once(shell: Shell) -> None:
    shell.usage(300, customers=30)
    shell.stripe.set_options(latency_ms=20)
    children = [shell.start("report-usage") for _ in range(2)]
    codes = sorted(child.wait(timeout=60) for child in children)
    for child in children:
        child.communicate()
    assert codes == [0, 75]
    assert shell.total == 300
    shell.assert_exact()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_in_order(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.usage(400, customers=40)
    shell.stripe.set_options(latency_ms=100)
    child = shell.start("report-usage", "--json")
    while not shell.stripe.events():
        time.sleep(0.01)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=30)
    assert child.returncode == code, stderr
    assert f'"exit_code": {code}' in stdout
    states = {row[0] for row in shell.sql("SELECT state FROM meterctl.meter_events")}
    assert states <= {"pending", "accepted"}, "what was in flight was recorded, what was not sent was returned"
    shell.assert_exact()


def test_a_lost_reader_is_no_error(shell: Shell) -> None:
    shell.usage(1)
    child = shell.start("report-usage")
    assert child.stdout is not None
    child.stdout.close()
    child.stdout = None
    child.communicate(timeout=30)
    assert child.returncode == 0
    assert shell.total == 1


def test_a_slow_far_side_still_ends_within_the_duration(shell: Shell) -> None:
    shell.usage(10, customers=10)
    shell.stripe.set_options(latency_ms=1000)
    started = time.monotonic()
    assert shell.run("report-usage", "--max-duration", "1s").code in {0, 69}
    assert time.monotonic() - started < timedelta(seconds=20).total_seconds()


def test_help_names_every_option_and_needs_nothing(shell: Shell) -> None:
    shell.extra = {"DATABASE_URL": "", "STRIPE_SECRET_KEY": ""}
    done = shell.run("report-usage", "--help")
    assert done.code == 0
    for option in (
        "--dry-run",
        "--json",
        "--limit",
        "--batch-size",
        "--max-duration",
        "--recent",
        "--meter",
        "--row",
        "--require-stripe",
        "--live",
        "--lock-timeout",
    ):
        assert re.search(rf"^\s.*{option}\b", done.stdout, re.MULTILINE), option
