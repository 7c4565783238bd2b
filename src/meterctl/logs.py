"""The log on stderr: one line a fact, few lines a run, JSON unless it is a terminal. Every secret is masked.

structlog is imported when logs are configured, since commands such as `--help` never log.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from traceback import TracebackException
from typing import TYPE_CHECKING, Any, TextIO

from meterctl.redaction import Redactor

if TYPE_CHECKING:
    import logging

__all__ = [
    "Log",
    "Redactor",
    "configure_logs",
    "get_logger",
    "redact",
    "render_crash",
    "render_exception",
    "wants_colour",
]

THIRD_PARTY_LOGGERS = ("stripe", "urllib3", "psycopg")
"""Libraries whose warnings join our log. What they say below that is for their own developers."""

_Sink = Callable[[str, str, dict[str, Any]], None]


def render_exception(error: BaseException) -> str:
    """Return the traceback with causes and contexts, but no local variables. Not redacted."""
    return "".join(TracebackException.from_exception(error, capture_locals=False).format()).rstrip("\n")


def render_crash(error: BaseException, redactor: Redactor | None = None) -> str:
    """Given an exception nobody expected, return what stderr should say before exit code 1; secrets are masked.

    Without a redactor the one of the configured logs is used.
    """
    message = str(error).strip()
    first_line = f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__
    text = (
        f"meterctl: a bug in meterctl: {first_line}\n"
        "hint: running the command again is safe; please report this with the lines below\n"
        f"{render_exception(error)}"
    )
    return (redactor or _state.redactor).text(text) + "\n"


def redact(text: str) -> str:
    """Return the text without the secrets the logs were configured with, and without what looks like one."""
    return _state.redactor.text(text)


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to use colour: on a terminal that is not dumb, unless NO_COLOR (no-color.org) forbids it."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb" and not stream.closed and stream.isatty()


def _plain(level: str, event: str, values: dict[str, Any]) -> None:
    """Before logs are configured: warnings and errors as plain lines on stderr, nothing else."""
    if level not in {"warning", "error"}:
        return
    error = values.pop("exc_info", None)
    words = [f"{key}={_state.redactor.value(value)}" for key, value in values.items()]
    trace = ["\n" + _state.redactor.text(render_exception(error))] if isinstance(error, BaseException) else []
    with contextlib.suppress(OSError, ValueError):
        print(" ".join([f"{level}: {_state.redactor.text(event)}", *words, *trace]), file=sys.stderr)  # noqa: T201 -- no log yet


@dataclass(slots=True)
class _State:
    """Where log calls go now."""

    sink: _Sink = _plain
    redactor: Redactor = field(default_factory=Redactor)


_state = _State()


@dataclass(frozen=True, slots=True)
class Log:
    """A logger with values that go into each of its lines. Events are facts: `log.info("run_finished", units=3)`."""

    context: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, **values: object) -> "Log":
        """Return a logger that adds these values to its lines."""
        return Log({**self.context, **values})

    def debug(self, event: str, /, **values: object) -> None:
        """Log for whoever looks for a fault."""
        _state.sink("debug", event, {**self.context, **values})

    def info(self, event: str, /, **values: object) -> None:
        """Log a fact."""
        _state.sink("info", event, {**self.context, **values})

    def warning(self, event: str, /, **values: object) -> None:
        """Log something a person may want to change."""
        _state.sink("warning", event, {**self.context, **values})

    def error(self, event: str, /, **values: object) -> None:
        """Log something a person must look at."""
        _state.sink("error", event, {**self.context, **values})

    def exception(self, event: str, /, **values: object) -> None:
        """Log an error with the exception being handled."""
        _state.sink("error", event, {**self.context, **values, "exc_info": sys.exception()})


def get_logger(**context: object) -> Log:
    """Return a logger. It may be made at import time: where lines go is decided when they are written."""
    return Log(context)


def configure_logs(
    stream: TextIO, *, level: str = "info", console: bool = False, secrets: Iterable[str] = (), colour: bool = True
) -> Redactor:
    """Send log lines of at least `level` to `stream`, secrets masked, and return the redactor used for that.

    `level` is debug, info, warning or error. `console`: text for a terminal instead of JSON, in colour where
    `colour` allows it and the terminal wants it. May be called again; the last call counts.
    """
    import structlog  # noqa: PLC0415 -- 90 ms that `--help` need not spend

    redactor = Redactor(secrets)
    write = _writer(stream, redactor, is_json=not console)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _exception_as_text,
            lambda _logger, _name, entry: _ordered(redactor.value(entry)),
            _renderer(stream, console=console, colour=colour and wants_colour(stream, os.environ)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(write),
        cache_logger_on_first_use=False,
    )
    _state.redactor = redactor
    _state.sink = lambda name, event, values: getattr(structlog.get_logger(), name)(event, **values)
    _bind_third_parties()
    return redactor


def _renderer(stream: TextIO, *, console: bool, colour: bool) -> Callable[[Any, str, MutableMapping[str, Any]], str]:
    import structlog  # noqa: PLC0415 -- see configure_logs

    if console:
        return structlog.dev.ConsoleRenderer(
            colors=colour, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
    is_unicode = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    return lambda _logger, _name, entry: json.dumps(entry, ensure_ascii=not is_unicode)


def _ordered(entry: dict[str, Any]) -> dict[str, Any]:
    """Put first what every line has."""
    first: dict[str, Any] = {key: entry.pop(key) for key in ("timestamp", "level", "event") if key in entry}
    return {**first, **entry}


def _exception_as_text(_logger: object, _name: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    given = entry.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else sys.exception() if given is True else given
    if isinstance(error, BaseException):
        entry["exception"] = render_exception(error)
    return entry


def _writer(stream: TextIO, redactor: Redactor, *, is_json: bool) -> Callable[[str], None]:
    """Return a function that writes one line. A log that cannot be written never stops a delivery."""
    lock = threading.Lock()

    def write(line: str) -> None:
        masked = redactor.text(line)
        if is_json and masked != line and not _is_json(masked):
            masked = line  # each value was masked before; what matched here is the notation, such as a number
        with lock, contextlib.suppress(OSError, ValueError):
            stream.write(f"{masked}\n")
            stream.flush()

    return write


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class _Lines:
    """The end of structlog's chain: one method per level, each writes a rendered line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


def _bind_third_parties() -> None:
    """Send what libraries log at WARNING and above through our own log, and so through its redactor."""
    import logging  # noqa: PLC0415 -- structlog needs it too, and nothing before does

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            level = "error" if record.levelno >= logging.ERROR else "warning"
            _state.sink(level, _message(record), {"logger": record.name, "exc_info": record.exc_info})

    root = logging.getLogger()
    for handler in [each for each in root.handlers if each.get_name() == "meterctl"]:
        root.removeHandler(handler)
    forward = Forward(logging.WARNING)
    forward.set_name("meterctl")
    root.addHandler(forward)
    for name in THIRD_PARTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _message(record: "logging.LogRecord") -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # their message does not fit its arguments
        return str(record.msg)
