"""The command's frame: errors become one line on stderr and an exit code, and nothing else leaves as a traceback."""

import os
import sys
from collections.abc import Sequence

from meterctl.errors import ExitCode, MeterctlError, UnavailableError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    from meterctl.cli.app import app  # noqa: PLC0415 -- so that a broken installation is reported like any other bug

    try:
        app(args=arguments, prog_name="meterctl")
    except SystemExit as stop:  # Typer's way out, for usage errors (2) too
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except MeterctlError as error:
        _say(error)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return ExitCode.OK  # the reader went away (`meterctl … | head`): nobody is left to tell
    return ExitCode.OK


def _say(error: MeterctlError) -> None:
    from meterctl.logs import redact  # noqa: PLC0415 -- only where there is something to say

    lines = [f"meterctl: {error.message}"]
    lines += [f"  {problem}" for problem in getattr(error, "problems", ())]
    lines += [f"hint: {error.hint}"] if error.hint else []
    print(redact("\n".join(lines)), file=sys.stderr)  # noqa: T201 -- the command's own voice


def run() -> None:
    """Entry point of the installed command."""
    try:
        code = main()
    except Exception as error:  # noqa: BLE001 -- the last line of defence: a bug, told without secrets
        from meterctl.logs import render_crash  # noqa: PLC0415 -- only where there is something to say

        sys.stderr.write(render_crash(error))
        code = ExitCode.BUG
    _flush()
    raise SystemExit(int(code))


def _flush() -> None:
    """Write out what is left for both streams; a reader that has gone away does not change the exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed by whoever started us
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python flushes once more and says so
            if not isinstance(error, BrokenPipeError) and stream is sys.stdout:
                _say(UnavailableError(f"the output could not be written: {error.strerror}"))


if __name__ == "__main__":
    run()
