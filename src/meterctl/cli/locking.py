"""All meters locked at once, for commands that change the ledger as a whole."""

from collections.abc import Iterator
from contextlib import contextmanager

from meterctl.clock import SystemHostClock
from meterctl.errors import LockedError
from meterctl.postgres.lock import MeterLocks
from meterctl.postgres.runs import run_label
from meterctl.settings import Settings


@contextmanager
def all_meters_locked(settings: Settings, further_names: set[str]) -> Iterator[MeterLocks]:
    """Hold the locks of all configured meters and of those that only the ledger knows.

    Raises LockedError naming who has one.
    """
    names = further_names | {meter.event_name for meter in settings.meters.values()}
    conninfo = settings.database_url.get_secret_value()
    with MeterLocks(conninfo, run_label=run_label(), host_clock=SystemHostClock()) as locks:
        for name in sorted(names):
            if not locks.acquire(name, timeout_s=0, stopping=lambda: False):
                raise LockedError(
                    f"{name}: locked by {locks.holder(name)}",
                    hint="nothing was changed; run it again when that one has ended",
                )
        yield locks
