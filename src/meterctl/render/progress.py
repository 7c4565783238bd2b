"""While a report runs on a terminal: one line on stderr that says how far it is. Nothing anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meterctl.actions.tally import Tally

Progress = Callable[[Tally], None]

REFRESH_EVERY_S = 0.2


@contextmanager
def delivery_progress(*, wanted: bool, expected: int | None = None) -> Iterator[Progress]:
    """Yield what a delivery calls after each tick; it draws only where `wanted` and stderr is a terminal.

    Where it is known how many events are `expected`, it draws a bar.
    """
    if not (wanted and sys.stderr.isatty()):
        yield lambda _: None
        return
    with _line() if expected is None else _bar(expected) as draw:
        drawn_s = 0.0
        latest: Tally | None = None

        def draw_at_times(tally: Tally) -> None:
            nonlocal drawn_s, latest
            latest = tally
            if time.monotonic() - drawn_s >= REFRESH_EVERY_S:
                drawn_s = time.monotonic()
                draw(tally)

        yield draw_at_times
        if latest is not None:
            draw(latest)


@contextmanager
def _line() -> Iterator[Progress]:
    from rich.console import Console  # noqa: PLC0415 -- cron has no terminal, and need not wait for rich

    with Console(stderr=True, no_color=True).status("collecting …") as status:
        yield lambda tally: status.update(f"{tally.event_name}: {tally.reported} reported, {tally.rejected} rejected")


@contextmanager
def _bar(expected: int) -> Iterator[Progress]:
    from rich.console import Console  # noqa: PLC0415 -- as above
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415 -- as above
    from rich.progress import Progress as Bar  # noqa: PLC0415 -- as above

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True, no_color=True)) as bar:
        task = bar.add_task("delivering", total=expected)
        yield lambda tally: bar.update(task, completed=tally.reported + tally.rejected)
