"""`meterctl settle` as a person and a script use it."""

import time
from datetime import timedelta

import pytest

from cli.conftest import Shell
from meterctl.sandbox.local_stripe import Fault, FaultKind

FORBIDDEN = Fault(kind=FaultKind.FORBIDDEN, operation="event_summaries.list", times=None)


def doubt(shell: Shell, quantity: int = 3, *, elsewhere: int = 0) -> None:
    """Usage that Stripe has, though nobody heard it say so, a day ago; `elsewhere`: somebody else reported as well."""
    shell.usage(quantity=quantity)
    shell.run("report-usage")
    shell.sql(
        "UPDATE usage_events SET stripe_reported_at = NULL;"
        "UPDATE meterctl.meter_events SET state = 'in_doubt', ever_in_doubt = true, accepted_at = NULL,"
        " settled_by = NULL, doubt_since = now() - interval '25 hours', last_attempt_at = now() - interval '25 hours'"
    )
    if elsewhere:
        shell.sql("UPDATE meterctl.meter_events SET value = value - %s, quantity = quantity - %s", elsewhere, elsewhere)


def an_hour_passes(shell: Shell) -> None:
    """The series began earlier than it did."""
    shell.sql(
        "UPDATE meterctl.settlements SET first_seen = first_seen - interval '61 min',"
        " last_seen = last_seen - interval '61 min' WHERE decision IS NULL"
    )


@pytest.fixture
def held(shell: Shell) -> Shell:
    """A doubt that Stripe's total does not explain."""
    doubt(shell, elsewhere=1)
    shell.run("settle")
    an_hour_passes(shell)
    return shell


def event_id(shell: Shell) -> str:
    return str(shell.sql("SELECT id FROM meterctl.meter_events")[0][0])


def state(shell: Shell) -> tuple[str, ...]:
    text = "SELECT state, settled_by, held_reason, closed_reason FROM meterctl.meter_events"
    return tuple(shell.sql(text)[0])


def test_it_decides_with_the_second_read(shell: Shell) -> None:
    doubt(shell)
    first = shell.run("settle")
    assert (first.code, first.stderr) == (0, "")
    assert first.stdout == "ai_suggestion: reads 1, present 0, absent 0, expired 0, rejected 0, held 0, waiting 1\n"
    an_hour_passes(shell)
    second = shell.run("settle", "--json")
    assert second.document["meters"] == [
        {
            "event_name": "ai_suggestion",
            "reads": 1,
            "present": 1,
            "absent": 0,
            "expired": 0,
            "rejected": 0,
            "held": 0,
            "waiting": 0,
            "note": None,
        }
    ]
    assert (second.code, state(shell)[:2]) == (0, ("accepted", "totals"))
    shell.assert_exact()


def test_the_next_report_stamps_what_was_settled(shell: Shell) -> None:
    doubt(shell)
    shell.run("settle")
    an_hour_passes(shell)
    shell.run("settle")
    assert shell.run("report-usage").code == 0
    assert shell.sql("SELECT id FROM usage_events WHERE stripe_reported_at IS NULL") == []
    assert shell.total == 3


def test_quiet_is_silent_when_all_is_well(shell: Shell) -> None:
    doubt(shell)
    done = shell.run("settle", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_a_dry_run_tells_the_cost_and_reads_nothing(shell: Shell) -> None:
    doubt(shell)
    done = shell.run("settle", "-n")
    assert done.stdout == "ai_suggestion: would read 1 totals of Stripe's, each of one customer and minute\n"
    assert shell.stripe.requests("event_summaries.list") == []


def test_what_is_held_is_shown_with_its_figures_and_the_commands(held: Shell) -> None:
    done = held.run("settle")
    assert done.code == 10
    heads, row = done.stdout.splitlines()[1:]
    assert heads.split()[:5] == ["event", "customer", "minute", "value", "Stripe"]
    assert row.split()[:7][4:] == ["2", "3", "0"]
    assert row.endswith("foreign")
    assert f"meterctl settle --assume-present {event_id(held)} --reason" in done.stderr
    assert [event["held_reason"] for event in held.run("settle", "--json").document["held"]] == ["foreign"]


def test_a_report_says_what_is_held_and_where_to_look(held: Shell) -> None:
    done = held.run("report-usage")
    assert done.code == 10
    assert "1 held" in done.stderr
    assert "meterctl settle" in done.stderr
    assert held.run("summary").code == 10


@pytest.mark.parametrize(
    ("assumption", "expected"), [("--assume-present", ("accepted", "person")), ("--assume-absent", ("in_doubt", None))]
)
def test_a_persons_word_decides(held: Shell, assumption: str, expected: tuple[str, str | None]) -> None:
    """Assumed absent, it is sent again under its identifier: here Stripe knows it, so it is in doubt once more."""
    held.run("settle")
    done = held.run("settle", assumption, event_id(held), "--reason", "seen in the dashboard", "--yes")
    assert done.code == 0, done.stderr
    held.run("report-usage")
    assert state(held) == (*expected, None, "seen in the dashboard")
    assert held.total == 3


def test_without_agreement_nothing_is_changed(held: Shell) -> None:
    held.run("settle")
    done = held.run("settle", "--assume-present", event_id(held), "--reason", "x")
    assert (done.code, state(held)[0]) == (2, "in_doubt")
    assert "--yes" in done.stderr
    assert held.run("settle", "-n", "--assume-present", event_id(held), "--reason", "x").code == 0
    assert state(held)[0] == "in_doubt"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--assume-present", "--assume-absent", "1", "--reason", "x"], "exclude each other"),
        (["--assume-present", "--reason", "x"], "name the events"),
        (["1"], "--assume-present or --assume-absent"),
        (["--assume-present", "1"], "--reason"),
    ],
)
def test_nonsense_is_a_usage_error(shell: Shell, arguments: list[str], says: str) -> None:
    done = shell.run("settle", *arguments)
    assert done.code == 2
    assert says in done.stderr


def test_an_accepted_event_is_not_a_persons_to_decide(shell: Shell) -> None:
    shell.usage()
    shell.run("report-usage")
    done = shell.run("settle", "--assume-absent", event_id(shell), "--reason", "x", "--yes")
    assert done.code == 65
    assert "is accepted" in done.stderr


def test_a_young_doubt_is_not_a_persons_to_decide(shell: Shell) -> None:
    doubt(shell)
    shell.sql("UPDATE meterctl.meter_events SET doubt_since = now() - interval '1 hour'")
    done = shell.run("settle", "--assume-absent", event_id(shell), "--reason", "x", "--yes")
    assert (done.code, state(shell)[0]) == (65, "in_doubt")
    assert "sending it again" in done.stderr


def test_an_unknown_event_is_named(shell: Shell) -> None:
    done = shell.run("settle", "--assume-absent", "4711", "--reason", "x", "--yes")
    assert done.code == 65
    assert "4711" in done.stderr


def test_a_key_that_may_not_read_totals_is_77(shell: Shell) -> None:
    doubt(shell)
    shell.stripe.add_fault(FORBIDDEN)
    done = shell.run("settle")
    assert done.code == 77
    assert "Set up Stripe" in done.stderr or "forbids" in done.stderr


def test_a_locked_meter_is_75(shell: Shell) -> None:
    doubt(shell)
    shell.stripe.add_fault(Fault(kind=FaultKind.SLOW, delay_s=20, operation="event_summaries.list"))
    first = shell.start("settle")
    try:
        while not shell.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"):
            assert first.poll() is None
        assert shell.run("settle").code == 75
    finally:
        first.kill()
        first.communicate()


def test_without_a_key_it_is_78(shell: Shell) -> None:
    shell.extra["STRIPE_SECRET_KEY"] = ""
    assert shell.run("settle").code == 78


def test_settling_is_no_report_for_a_watcher(shell: Shell) -> None:
    """A settle by hand must not hide that cron has stopped."""
    shell.run("settle")
    assert shell.run("summary", "--max-age", "26h").code == 11


def test_a_shortfall_put_in_doubt_is_found_absent_and_sent_again(shell: Shell) -> None:
    """Stripe answered 200 and dropped the events afterwards: it did not know the customer then."""
    shell.stripe.set_options(unknown_customer="later")
    shell.usage(1, quantity=6, known=False)
    assert (shell.run("report-usage").code, shell.total) == (0, 0)
    shell.stripe.create_customer("cus_1")
    minute = shell.sql("SELECT to_char(min(sent_timestamp), 'YYYY-MM-DD\"T\"HH24:MI:00TZH') FROM meterctl.meter_events")
    where = ("--meter", "ai_suggestion", "--customer", "cus_1", "--minute", minute[0][0])
    done = shell.run("ledger", "doubt", *where, "--reason", "Stripe shows 0", "--yes")
    assert (done.code, "1 events are in doubt" in done.stdout) == (0, True), done.stderr
    shell.sql("UPDATE meterctl.meter_events SET last_attempt_at = now() - interval '3 hours'")
    shell.run("settle")
    an_hour_passes(shell)
    shell.stripe.clock.advance(timedelta(minutes=1))
    assert shell.run("settle").stdout.startswith("ai_suggestion: reads 1, present 0, absent 1")
    shell.run("report-usage")
    assert state(shell)[0] == "in_doubt", "it knew the identifier"
    shell.sql("UPDATE meterctl.meter_events SET last_attempt_at = now() - interval '3 hours'")
    shell.run("settle")
    an_hour_passes(shell)
    shell.run("settle")
    shell.stripe.set_options(identifier_window_h=0.0001)
    time.sleep(1)
    assert shell.run("report-usage").code == 0
    assert shell.total == 6
    shell.assert_exact()


def test_doubt_asks_first_and_wants_a_whole_minute(shell: Shell) -> None:
    shell.usage()
    shell.run("report-usage")
    where = ("--meter", "ai_suggestion", "--customer", "cus_1", "--reason", "x")
    assert shell.run("ledger", "doubt", *where, "--minute", "2026-11-21T02:00:30Z").code == 2
    (minute,) = shell.sql("SELECT to_char(sent_timestamp, 'YYYY-MM-DD\"T\"HH24:MI:00TZH') FROM meterctl.meter_events")[
        0
    ]
    assert shell.run("ledger", "doubt", *where, "--minute", minute).code == 2
    assert shell.run("ledger", "doubt", *where, "--minute", minute, "-n").code == 0
    assert state(shell)[0] == "accepted"
