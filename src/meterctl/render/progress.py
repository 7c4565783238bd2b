"""While a report runs on a terminal: one line on stderr that says how far it is. Nothing anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meterctl.actions.tally import Tally

Progress = Callable[[Tally], None]

REFRESH_EVERY_S = 0.2


@contextmanager
def delivery_progress(*, wanted: bool) -> Iterator[Progress]:
    """Yield what a delivery calls after each tick; it draws only where `wanted` and stderr is a terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 -- cron has no terminal, and need not wait for rich

    drawn_s = 0.0
    with Console(stderr=True, no_color=True).status("collecting …") as status:

        def draw(tally: Tally) -> None:
            nonlocal drawn_s
            if time.monotonic() - drawn_s >= REFRESH_EVERY_S:
                drawn_s = time.monotonic()
                status.update(f"{tally.event_name}: {tally.reported} reported, {tally.rejected} rejected")

        yield draw
