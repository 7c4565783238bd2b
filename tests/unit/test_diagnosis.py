"""The doctor's pure parts: which check is asked, what all of it comes to, and which periods a schedule misses."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from meterctl.actions.doctor import Check, diagnose
from meterctl.core.diagnosis import Finding, Status, failed, parted, passed, skipped, verdict, warned
from meterctl.core.model import clocks_apart
from meterctl.core.schedule import missed, run_minutes
from meterctl.errors import ConfigurationError, ExitCode, NotPermittedError

HOUR = timedelta(hours=1)


def told(*checks: Check) -> list[tuple[str, str]]:
    return [(name, finding.message) for name, finding in diagnose(checks)]


def test_what_rests_on_something_broken_is_skipped_and_all_else_goes_on() -> None:
    checks = [
        Check(name="a", ask=lambda: [failed("a is broken", None)]),
        Check(name="b", ask=lambda: [passed("never asked")], needs=("a",)),
        Check(name="c", ask=lambda: [passed("never asked")], needs=("b",)),
        Check(name="d", ask=lambda: [warned("d is odd", None)]),
        Check(name="e", ask=lambda: [passed("e goes on")], needs=("d",)),
        Check(name="f", ask=lambda: [passed("never asked")], left_out="--offline"),
        Check(name="g", ask=lambda: [passed("never asked")], needs=("a", "f")),
    ]
    assert told(*checks) == [
        ("a", "a is broken"),
        ("b", "skipped: it needs a, see above"),
        ("c", "skipped: it needs b, see above"),
        ("d", "d is odd"),
        ("e", "e goes on"),
        ("f", "skipped: --offline"),
        ("g", "skipped: it needs a and f, see above"),
    ]


def test_an_error_in_mid_check_keeps_what_was_found_before_it() -> None:
    def ask(error: Exception) -> Iterator[Finding]:
        yield passed("so far")
        raise error

    several = ConfigurationError("summary", problems=("x: is wrong; mend it", "y: is wrong"))
    found = [
        finding
        for error in (NotPermittedError("no", hint="ask"), several, ZeroDivisionError("oh"))
        for _, finding in diagnose([Check(name="a", ask=partial(ask, error))])
        if finding.status is not Status.OK
    ]
    assert [(finding.message, finding.remedy, finding.code) for finding in found] == [
        ("no", "ask", ExitCode.NOT_PERMITTED),
        ("x: is wrong", "mend it", ExitCode.CONFIGURATION),
        ("y: is wrong", None, ExitCode.CONFIGURATION),
        ("a bug in meterctl: ZeroDivisionError: oh", "please report this line", ExitCode.BUG),
    ]


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([passed("x"), skipped("y")], 0),
        ([passed("x"), warned("y", None)], 10),
        ([warned("y", None), failed("z", None, ExitCode.UNAVAILABLE)], 69),
        ([failed("z", None, ExitCode.UNAVAILABLE), failed("z", None, ExitCode.NOT_PERMITTED)], 77),
        ([failed("z", None, ExitCode.NOT_PERMITTED), failed("z", None)], 78),
    ],
)
def test_the_worst_finding_is_what_it_ends_with(findings: list[Finding], code: int) -> None:
    assert verdict(findings) == code


def test_a_line_is_parted_at_its_first_semicolon() -> None:
    assert parted("a: is wrong; do this; then that") == ("a: is wrong", "do this; then that")
    assert parted("a: is wrong") == ("a: is wrong", None)
    assert warned(*parted("a; b")).line == "a; b"


# The schedule


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("02:00", (120,)),
        ("00:00", (0,)),
        ("23:59", (1439,)),
        ("*:30", tuple(range(30, 1440, 60))),
        ("24:00", None),
        ("2:00", None),
        ("02:60", None),
        ("02:00:00", None),
        ("", None),
    ],
)
def test_a_time_is_minutes_of_the_day(time: str, minutes: tuple[int, ...] | None) -> None:
    assert run_minutes(time) == minutes


@pytest.mark.parametrize(
    ("end", "grace_h", "lost"),
    [
        (120, 1, False),  # the run starts as the period ends
        (119, 1, False),
        (61, 1, False),
        (60, 1, True),  # the run would start as the invoice becomes final
        (121, 1, True),  # a minute after the run: the next is a day away
        (121, 23, True),
        (121, 24, False),
        (120, 0, True),
    ],
)
def test_a_period_is_missed_if_its_invoice_is_final_before_the_next_run(end: int, grace_h: int, *, lost: bool) -> None:
    assert missed({end: 7}, [120], grace_h * HOUR) == (7 if lost else 0)


def test_an_hourly_run_misses_none_and_one_run_of_several_suffices() -> None:
    everywhere = dict.fromkeys(range(1440), 1)
    assert missed(everywhere, run_minutes("*:30") or (), HOUR) == 0
    assert missed(everywhere, [120], HOUR) == 1440 - 60
    assert missed(everywhere, [120, 121], HOUR) == 1440 - 61
    assert missed({}, [120], HOUR) == 0


# Clocks


def test_a_clock_is_named_that_is_more_than_five_minutes_off() -> None:
    now = datetime(2026, 12, 1, 2, 0, tzinfo=UTC)
    assert clocks_apart(now + timedelta(minutes=5), now, whose="this host's") is None
    said = clocks_apart(now - timedelta(minutes=5, seconds=1), now, whose="this host's")
    assert said == (
        "this host's clock (2026-12-01 01:54:59Z) and PostgreSQL's (2026-12-01 02:00:00Z) are > 5 min apart"
    )
