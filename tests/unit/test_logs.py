"""The log: one JSON line a fact, and no secret in any of them, whatever raised it."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import structlog
from freezegun import freeze_time

from meterctl import logs
from meterctl.logs import Redactor, configure_logs, get_logger, redact, render_crash, wants_colour

SECRET = "hunter2/ü&x"  # noqa: S105 -- fake
KEY = "sk_test_example"
ENCODED = "hunter2%2F%C3%BC%26x"


@pytest.fixture(autouse=True)
def _logs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test configures its own log; afterwards there is none, as at the start of the program."""
    monkeypatch.setattr(logs, "_state", type(logs._state)())  # noqa: SLF001 -- the one place that holds it
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [each for each in root.handlers if each.get_name() == "meterctl"]:
        root.removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Unprintable:
    def __repr__(self) -> str:
        return f"<Unprintable {SECRET}>"


def chained_failure() -> None:
    """Fail with secrets in a message, a cause, a note and local variables."""
    password = "a-local-variable"  # noqa: S105, F841 -- fake, and what a traceback with locals would show
    try:
        raise KeyError(f"postgresql://u:{ENCODED}@h/d")  # noqa: TRY301 -- the cause is the point
    except KeyError as error:
        failure = ValueError(f"cannot use {KEY}: é")
        failure.add_note(f"password was {SECRET}")
        raise failure from error


def test_a_fact_is_one_json_line_with_a_utc_timestamp() -> None:
    stream = io.StringIO()
    configure_logs(stream)
    with freeze_time("2026-11-21T02:00:00+01:00"):
        get_logger(run_id=7).info("run_finished", units=Decimal("1.50"), customer="Müller", ok=True, none=None)
    assert lines(stream) == [
        {
            "timestamp": "2026-11-21T01:00:00Z",
            "level": "info",
            "event": "run_finished",
            "run_id": 7,
            "units": "1.50",
            "customer": "Müller",
            "ok": True,
            "none": None,
        }
    ]
    assert stream.getvalue().startswith(
        '{"timestamp": "2026-11-21T01:00:00Z", "level": "info", "event": "run_finished"'
    )
    assert "Müller" in stream.getvalue()


def test_a_stream_that_is_not_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    configure_logs(stream)
    get_logger().info("café €", emoji="🧾")
    assert json.loads(raw.getvalue().decode("ascii"))["event"] == "café €"


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_only_the_level_asked_for_and_above_is_written(level: str, heard: int) -> None:
    stream = io.StringIO()
    configure_logs(stream, level=level)
    log = get_logger()
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert len(lines(stream)) == heard


def test_secrets_are_masked_in_every_place_a_line_has() -> None:
    stream = io.StringIO()
    configure_logs(stream, level="debug", secrets=[SECRET, KEY, "whsec_example"])
    log = get_logger(bound=SECRET).bind(nested={SECRET: [KEY, ({"deep": SECRET},)]})
    log.info(SECRET, url=f"postgresql://u:{ENCODED}@h", raw=SECRET.encode(), error=ValueError(KEY))
    log.info("more", object=Unprintable(), lower=ENCODED.lower(), escaped=json.dumps(SECRET), signing="whsec_example")
    assert_nothing_shown(stream.getvalue())
    first = lines(stream)[0]
    assert (first["event"], first["url"], first["bound"]) == ("***", "postgresql://u:***@h", "***")
    assert first["nested"] == {"***": ["***", [{"deep": "***"}]]}


def assert_nothing_shown(text: str) -> None:
    """Assert that no part of the secrets stands in a text."""
    assert not re.search(r"hunter2|example|a-local-variable", text), text


@pytest.mark.parametrize("console", [False, True])
def test_tracebacks_have_causes_but_no_locals_and_no_secrets(*, console: bool) -> None:
    stream = io.StringIO()
    configure_logs(stream, console=console, secrets=[SECRET, KEY])
    try:
        chained_failure()
    except ValueError:
        get_logger().exception("crashed")
    text = stream.getvalue() if console else lines(stream)[0]["exception"]
    assert_nothing_shown(re.sub(r"(?m)^ {4}.*$", "", text))  # lines of the source, where this test spells them out
    assert "KeyError: 'postgresql://u:***@h/d'" in text
    assert "The above exception was the direct cause" in text
    assert "ValueError: cannot use ***: é" in text
    assert "password was ***" in text
    assert "in chained_failure" in text


def test_a_crash_is_shown_short_first_then_with_its_frames() -> None:
    configure_logs(io.StringIO(), secrets=[SECRET, KEY])
    try:
        chained_failure()
    except ValueError as error:
        text = render_crash(error)
        own = render_crash(error, Redactor())
    first, hint, trace, *_ = text.splitlines()
    assert first == "meterctl: a bug in meterctl: ValueError: cannot use ***: é"
    assert hint.startswith("hint: running the command again is safe; please report this")
    assert trace == "Traceback (most recent call last):"
    assert_nothing_shown(re.sub(r"(?m)^ {4}.*$", "", text))
    assert KEY not in own
    assert render_crash(KeyError()).splitlines()[0] == "meterctl: a bug in meterctl: KeyError"


def test_a_group_of_exceptions_is_masked_too() -> None:
    group = ExceptionGroup("two", [ValueError(KEY), OSError(f"postgresql://u:{SECRET}@h")])
    text = render_crash(group, Redactor([SECRET]))
    assert_nothing_shown(text)
    assert "OSError" in text


def test_third_party_warnings_join_the_log_and_are_masked() -> None:
    stream = io.StringIO()
    configure_logs(stream, secrets=[SECRET])
    for name in ("stripe", "urllib3.connectionpool", "psycopg.pool"):
        logging.getLogger(name).info("not heard %s", SECRET)
        logging.getLogger(name).warning("heard %s of %s", SECRET, "rk_live_x")
    (ours,) = [handler for handler in logging.getLogger().handlers if handler.get_name() == "meterctl"]
    ours.handle(logging.LogRecord("stripe", logging.CRITICAL, "x.py", 1, "bad %d", ("text",), None))
    assert [(line["logger"], line["level"], line["event"]) for line in lines(stream)] == [
        ("stripe", "warning", "heard *** of ***"),
        ("urllib3.connectionpool", "warning", "heard *** of ***"),
        ("psycopg.pool", "warning", "heard *** of ***"),
        ("stripe", "error", "bad %d"),
    ]


def test_third_party_exceptions_lose_their_secrets() -> None:
    stream = io.StringIO()
    configure_logs(stream, secrets=[SECRET, KEY])
    try:
        chained_failure()
    except ValueError:
        logging.getLogger("psycopg").exception("lost")
    (line,) = lines(stream)
    assert line["event"] == "lost"
    assert "ValueError: cannot use ***" in line["exception"]


def test_configuring_again_moves_the_log_and_does_not_double_it() -> None:
    first, second = io.StringIO(), io.StringIO()
    log = get_logger()
    configure_logs(first)
    log.info("one")
    configure_logs(second)
    log.info("two")
    logging.getLogger("stripe").warning("three")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["two", "three"]


def test_before_configuration_only_warnings_are_shown_as_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger(run=1)
    log.debug("a")
    log.info("b")
    log.warning("odd", key=KEY)
    try:
        chained_failure()
    except ValueError:
        log.exception("failed")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("warning: odd run=1 key=***\nerror: failed run=1 \nTraceback")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_console_has_colour_only_where_it_is_wanted_and_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, forbidden, piped = Terminal(), Terminal(), io.StringIO()
    for stream, colour in ((coloured, True), (forbidden, False), (piped, True)):
        configure_logs(stream, console=True, colour=colour)
        get_logger().warning("odd", count=2)
    assert "\x1b[" in coloured.getvalue()
    for plain in (forbidden, piped):
        assert re.search(r"Z \[warning +\] odd +count=2$", plain.getvalue().rstrip())


def test_colour_needs_a_terminal_that_wants_it() -> None:
    assert wants_colour(Terminal(), {"TERM": "xterm"})
    assert wants_colour(Terminal(), {"TERM": "xterm", "NO_COLOR": ""})
    assert not wants_colour(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not wants_colour(Terminal(), {"TERM": "dumb"})
    assert not wants_colour(io.StringIO(), {"TERM": "xterm"})


def test_other_text_is_masked_like_the_log() -> None:
    assert redact(f"{KEY} {SECRET}") == f"*** {SECRET}"
    configure_logs(io.StringIO(), secrets=[SECRET])
    assert redact(f"{KEY} {SECRET}") == "*** ***"


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_log_nobody_can_read_stops_nothing() -> None:
    configure_logs(Broken())
    get_logger().info("still running")
    closed = io.StringIO()
    closed.close()
    configure_logs(closed)
    get_logger().info("still running")


def test_a_secret_that_is_a_number_leaves_the_line_json() -> None:
    stream = io.StringIO()
    configure_logs(stream, secrets=["2026", "count", '"'])
    get_logger().info("x 2026", count=2026, quoted='a "b"')
    (line,) = lines(stream)
    assert line["event"] == "x ***"


def test_importing_logs_does_not_import_structlog() -> None:
    program = "import sys, meterctl.logs as l; l.get_logger().info('x'); print('structlog' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
