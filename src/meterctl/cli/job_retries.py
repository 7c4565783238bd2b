"""`--job-retries`: a whole job again after 1, 2, 4 … delays, while its exit code means "later"."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from meterctl.errors import ExitCode, MeterctlError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterctl.render.report import ReportDocument

LATER = frozenset({ExitCode.UNAVAILABLE, ExitCode.LOCKED})
"""Codes that another try a little later may turn into 0."""


def with_job_retries(job: "Callable[[], ReportDocument]", *, retries: int, delay: timedelta) -> "ReportDocument":
    """Run the job until it has an answer that waiting cannot improve; return the last one, or raise its error.

    Nothing is told before: what an earlier attempt found, a later one finds untold.
    """
    from meterctl.logs import get_logger

    for attempt in range(retries):
        code, document = _attempt(job)
        if code not in LATER and document is not None:
            return document
        wait_s = delay.total_seconds() * 2**attempt
        get_logger().warning("job_retry", attempt=attempt + 1, exit_code=int(code), wait_s=wait_s)
        time.sleep(wait_s)
    return job()


def _attempt(job: "Callable[[], ReportDocument]") -> "tuple[ExitCode, ReportDocument | None]":
    try:
        document = job()
    except MeterctlError as error:
        if error.exit_code not in LATER:
            raise
        return error.exit_code, None
    return document.exit_code, document
