"""`meterctl reconcile` as a person and a script use it."""

import signal
import time

import pytest

from cli.conftest import Shell
from meterctl.sandbox.local_stripe import Fault, FaultKind

AWAY = Fault(kind=FaultKind.ERROR_500, operation="event_summaries.list", times=None)
FORBIDDEN = Fault(kind=FaultKind.FORBIDDEN, operation="event_summaries.list", times=None)


def usage(shell: Shell, count: int = 1, *, customers: int = 1, quantity: int = 3, known: bool = True) -> None:
    """Usage of a day ago, or so."""
    shell.usage(count, customers=customers, quantity=quantity, known=known)
    shell.sql("UPDATE usage_events SET created_at = created_at - interval '1 day' WHERE stripe_reported_at IS NULL")


def hours_pass(shell: Shell) -> None:
    """What was sent was sent hours ago, and a series of reads began an hour earlier."""
    shell.sql(
        "UPDATE meterctl.meter_events SET last_attempt_at = last_attempt_at - interval '3 hours';"
        "UPDATE meterctl.settlements SET first_seen = first_seen - interval '61 min',"
        " last_seen = last_seen - interval '61 min' WHERE decision IS NULL"
    )


def lose(shell: Shell, quantity: int = 6) -> None:
    """Stripe answers 200 and drops the events afterwards: it did not know the customer then. It does now."""
    shell.stripe.set_options(unknown_customer="later")
    usage(shell, quantity=quantity, known=False)
    assert shell.run("report-usage").code == 0
    shell.stripe.create_customer("cus_1")
    hours_pass(shell)
    assert shell.total == 0


@pytest.fixture
def reported(shell: Shell) -> Shell:
    """Three customers, all of whose usage Stripe has."""
    usage(shell, 6, customers=3)
    assert shell.run("report-usage").code == 0
    hours_pass(shell)
    return shell


def test_equal_totals_are_0_and_proven(reported: Shell) -> None:
    assert reported.run("summary", "--json").document["meters"][0]["proven_up_to"] is None
    done = reported.run("reconcile")
    assert done.code == 0
    assert done.stdout.endswith(": customers 3, equal 3, different 0, left 0, reads 6\n")
    assert len(done.stdout.splitlines()) == 1
    document = reported.run("reconcile", "--json").document
    meter = reported.run("summary", "--json").document["meters"][0]
    assert meter["proven_up_to"] == document["until"]
    assert "proven up to" in reported.run("summary").stdout
    assert document["until"] in reported.run("summary").stdout


def test_the_cost_is_said_before_anything_is_read(reported: Shell) -> None:
    reported.stripe.add_fault(AWAY)
    done = reported.run("reconcile")
    told = done.stderr.splitlines()[0]
    assert told.endswith(
        ": 3 customers of 1 meters, 6 reads of Stripe's totals by day, and at most 294 more to narrow differences"
        " (--max-reads 300)"
    )
    assert done.code == 69


def test_json_is_exactly_one_document(reported: Shell) -> None:
    document = reported.run("reconcile", "--json").document
    assert (document["schema"], document["exit_code"], document["differences"]) == ("meterctl.reconcile/1", 0, [])
    assert {name: document[name] for name in ("customers", "equal", "different", "left", "reads", "max_reads")} == {
        "customers": 3,
        "equal": 3,
        "different": 0,
        "left": 0,
        "reads": 6,
        "max_reads": 300,
    }
    assert document["meters"] == [
        {
            "event_name": "ai_suggestion",
            "customers": 3,
            "equal": 3,
            "left": 0,
            "unknown": 0,
            "reads": 6,
            "ledger_total": "18",
            "stripe_total": "18",
            "late": 0,
            "late_units": "0",
            "note": None,
        }
    ]


def test_quiet_is_silent_when_all_is_well(reported: Shell) -> None:
    done = reported.run("reconcile", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_quiet_is_not_silent_about_a_difference(shell: Shell) -> None:
    lose(shell)
    done = shell.run("reconcile", "-q")
    assert (done.code, "shortfall" in done.stdout, "ledger doubt" in done.stderr) == (11, True, True)


def test_a_difference_is_a_line_with_its_totals_cause_and_command(shell: Shell) -> None:
    lose(shell)
    done = shell.run("reconcile")
    line, closing = done.stdout.splitlines()
    assert line.startswith("ai_suggestion cus_1 2")
    assert line.endswith(": ledger 6, Stripe 0: shortfall")
    assert ", different 1, " in closing
    assert "meterctl ledger doubt --meter ai_suggestion --customer cus_1 --minute 2" in done.stderr
    (difference,) = shell.run("reconcile", "--json").document["differences"]
    assert (difference["cause"], difference["explained"]) == ("shortfall", False)
    assert (difference["ledger_total"], difference["stripe_total"]) == ("6", "0")


def test_the_command_that_is_shown_mends_a_shortfall(shell: Shell) -> None:
    """Compared, put in doubt, settled by totals, sent again, compared again."""
    lose(shell)
    (difference,) = shell.run("reconcile", "--json").document["differences"]
    words = difference["command"].split(" --reason ")[0].split()[1:]
    done = shell.run(*words, "--reason", "Stripe has less", "--yes")
    assert (done.code, shell.sql("SELECT state FROM meterctl.meter_events")) == (0, [("in_doubt",)]), done.stderr
    for _ in range(2):
        shell.run("settle")
        hours_pass(shell)
    shell.stripe.set_options(identifier_window_h=0.0001)
    time.sleep(1)
    assert shell.run("report-usage").code == 0
    hours_pass(shell)
    assert shell.total == 6
    done = shell.run("reconcile")
    assert (done.code, ", equal 1, different 0, " in done.stdout) == (0, True), done.stderr
    assert shell.run("summary", "--json").document["meters"][0]["proven_up_to"] is not None
    shell.assert_exact()


def test_what_was_just_sent_is_no_alarm(shell: Shell) -> None:
    shell.stripe.set_options(summary_lag_s=3600)
    usage(shell)
    shell.run("report-usage")
    done = shell.run("reconcile")
    assert (done.code, "not_yet_caught_up" in done.stdout) == (0, True)
    assert shell.run("reconcile", "-q").stdout == ""


def test_stripe_away_is_69_and_what_was_found_before_is_shown_and_kept(reported: Shell) -> None:
    reported.stripe.add_fault(Fault(kind=FaultKind.ERROR_500, operation="event_summaries.list", nth=3, times=None))
    done = reported.run("reconcile")
    assert (done.code, ": customers 1, equal 1, different 0, left 2, " in done.stdout) == (69, True)
    assert "Stripe is away (HTTP 500)" in done.stderr
    assert len(reported.sql("SELECT id FROM meterctl.reconciliations")) == 1
    assert reported.sql("SELECT exit_code FROM meterctl.runs WHERE command = 'reconcile'") == [(69,)]


def test_a_key_that_may_not_read_totals_is_77(reported: Shell) -> None:
    reported.stripe.add_fault(FORBIDDEN)
    done = reported.run("reconcile")
    assert (done.code, "forbids" in done.stderr) == (77, True)


def test_without_a_key_it_is_78(shell: Shell) -> None:
    shell.extra["STRIPE_SECRET_KEY"] = ""
    assert shell.run("reconcile").code == 78


def test_few_reads_leave_customers_for_another_run(reported: Shell) -> None:
    done = reported.run("reconcile", "--max-reads", "4")
    assert (done.code, ", left 1, reads 4" in done.stdout) == (0, True)
    assert "1 customers are left for another run; all would cost 6 reads" in done.stderr
    again = reported.run("reconcile", "--max-reads", "2", "--json").document
    assert (again["customers"], again["left"]) == (1, 2)
    assert reported.sql("SELECT count(DISTINCT customer) FROM meterctl.reconciliations") == [(3,)]


def test_one_customer_and_a_range_can_be_named(reported: Shell) -> None:
    done = reported.run("reconcile", "--json", "--customer", "cus_2", "--since", "2026-01-01")
    assert done.document["customers"] == 1
    assert done.document["since"] == "2026-01-01T00:00:00Z"


def test_a_customer_nobody_knows_is_named(reported: Shell) -> None:
    done = reported.run("reconcile", "--customer", "cus_typo")
    assert "Stripe does not know 1 customers (e.g. cus_typo)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "2026-01-01T00:00:30Z"], "no whole minute"),
        (["--until", "2126-01-01"], "in the future"),
        (["--since", "2026-01-02", "--until", "2026-01-01"], "not before"),
        (["--since", "yesterday"], "no instant"),
        (["--since", "1969-12-31"], "before 1970"),
        (["--meter", "nope"], "no enabled meter"),
    ],
)
def test_nonsense_is_a_usage_error(shell: Shell, arguments: list[str], says: str) -> None:
    done = shell.run("reconcile", *arguments)
    assert (done.code, says in done.stderr) == (2, True), done.stderr


def test_what_is_no_text_is_bad_input(reported: Shell) -> None:
    done = reported.run("reconcile", "--customer", "\udcff")
    assert (done.code, "is no UTF-8 text" in done.stderr) == (65, True), done.stderr


def test_too_few_reads_for_one_customer_are_a_usage_error(reported: Shell) -> None:
    done = reported.run("reconcile", "--max-reads", "1")
    assert (done.code, "does not suffice" in done.stderr) == (2, True)


def test_an_empty_ledger_has_nothing_to_compare(shell: Shell) -> None:
    done = shell.run("reconcile")
    assert (done.code, ": customers 0, " in done.stdout) == (0, True)


def test_reconciling_is_no_report_for_a_watcher(shell: Shell) -> None:
    shell.run("reconcile")
    assert shell.run("summary", "--max-age", "26h").code == 11


def test_a_running_report_is_not_in_its_way(shell: Shell) -> None:
    usage(shell, 40, customers=2)
    shell.stripe.set_options(latency_ms=200)
    child = shell.start("report-usage")
    try:
        while shell.total < 6:
            assert child.poll() is None
        assert shell.run("reconcile").code == 0
    finally:
        child.kill()
        child.communicate()


def test_two_at_once_leave_one_newest_comparison_of_each_customer(reported: Shell) -> None:
    children = [reported.start("reconcile", "-q") for _ in range(3)]
    assert [child.communicate()[1] for child in children] == ["", "", ""]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert reported.sql("SELECT count(*), count(*) FILTER (WHERE latest) FROM meterctl.reconciliations") == [(9, 3)]


def test_a_signal_ends_it_after_the_read_under_way_and_what_was_found_is_kept(reported: Shell) -> None:
    slow = Fault(kind=FaultKind.SLOW, delay_s=2, operation="event_summaries.list", nth=3, times=None)
    reported.stripe.add_fault(slow)
    child = reported.start("reconcile", "--json")
    while len(reported.stripe.requests("event_summaries.list")) < 2:
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    stdout, stderr = child.communicate(timeout=30)
    assert (child.returncode, "Traceback" in stderr) == (143, False)
    assert '"customers": 1, "equal": 1, "different": 0, "left": 2' in stdout
    assert len(reported.sql("SELECT id FROM meterctl.reconciliations")) == 1


def test_leaving_test_mode_forgets_what_was_compared(reported: Shell) -> None:
    reported.run("reconcile")
    assert reported.run("db", "forget-test", "--yes").code == 0
    assert reported.sql("SELECT id FROM meterctl.reconciliations") == []


def test_the_other_modes_ledger_is_78(reported: Shell) -> None:
    reported.sql("UPDATE meterctl.identity SET account = 'acct_other'")
    done = reported.run("reconcile")
    assert (done.code, "belongs to account acct_other" in done.stderr) == (78, True)
    assert reported.stripe.requests("event_summaries.list") == []
