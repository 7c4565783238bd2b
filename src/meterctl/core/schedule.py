"""When reports run, and which billing periods end at an hour that they miss. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

DAY_MIN = 24 * 60
NIGHTLY = "02:00"
"""When the nightly run of deploy/crontab starts, UTC."""

_TIME = re.compile(r"([01][0-9]|2[0-3]|\*):([0-5][0-9])")


def run_minutes(time: str) -> tuple[int, ...] | None:
    """Given `02:00`, or `*:30` for every hour, return the minutes of the UTC day at which runs start; else None."""
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    hours: Iterable[int] = range(24) if match[1] == "*" else [int(match[1])]
    return tuple(hour * 60 + int(match[2]) for hour in hours)


def missed(period_ends: Mapping[int, int], runs: Sequence[int], grace: timedelta) -> int:
    """Given how many periods end at each minute of the UTC day, return how many are final before the next run starts.

    What is used between the last run and the period's end is sent by the first run behind it.
    """
    grace_min = grace // timedelta(minutes=1)
    return sum(count for end, count in period_ends.items() if min((run - end) % DAY_MIN for run in runs) >= grace_min)
