"""What the doctor asks, in order."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from meterctl.actions.doctor import Check
from meterctl.cli.doctor_database import DatabaseSide
from meterctl.cli.doctor_settings import Reading
from meterctl.cli.doctor_stripe import StripeSide
from meterctl.core.diagnosis import Finding, failed, passed, skipped, warned
from meterctl.core.model import clocks_apart
from meterctl.errors import ExitCode
from meterctl.postgres import doctor, inspection


@contextmanager
def checks(reading: Reading, *, times: Sequence[str], runs: Sequence[int], offline: bool) -> Iterator[list[Check]]:
    """Give all checks; what they open is closed behind the block."""
    configuration = Check(name="configuration", ask=reading.configuration)
    if reading.settings is None:
        yield [configuration, Check(name="everything else", ask=lambda: (), needs=("configuration",))]
        return
    with ExitStack() as stack:
        database = DatabaseSide(settings=reading.settings, stack=stack)
        stripe = StripeSide(settings=reading.settings)
        yield [
            configuration,
            Check(name="secrets", ask=reading.secrets),
            *_less(database.checks(), "database", at_fault="DATABASE_URL" in reading.left_out),
            *_offline(_less(stripe.checks(), "key", at_fault="STRIPE_SECRET_KEY" in reading.left_out), offline=offline),
            Check(name="clocks", ask=lambda: _clocks(database, stripe), needs=("database",)),
            Check(name="identity", ask=lambda: _identity(database, stripe), needs=("database", "schema")),
            *database.usage_checks(times=times, runs=runs),
        ]


def _less(checks: Sequence[Check], first: str, *, at_fault: bool) -> list[Check]:
    """Leave out the check that all others need, where what it looks at was at fault already."""
    why = "its secret is not in order, see above" if at_fault else None
    return [replace(check, left_out=why) if check.name == first else check for check in checks]


def _offline(checks: Sequence[Check], *, offline: bool) -> list[Check]:
    """The key's own prefix can be looked at all the same."""
    return [replace(check, left_out="--offline") if offline and check.name != "key" else check for check in checks]


def _clocks(database: DatabaseSide, stripe: StripeSide) -> Iterator[Finding]:
    now = database.now()
    apart = clocks_apart(datetime.now(UTC), now, whose="this host's")
    if apart is not None:
        yield warned(apart, "PostgreSQL's decides; set the one that is wrong")
    else:
        yield passed("this host's clock and PostgreSQL's agree")
    stripe_date = stripe.account.stripe_date if stripe.account else None
    if stripe_date is None:
        yield skipped("Stripe has not told its time")
    elif (apart := clocks_apart(stripe_date, now)) is not None:
        yield failed(apart, "set the clock that is wrong: no report runs until then", ExitCode.UNAVAILABLE)
    else:
        yield passed("Stripe's clock and PostgreSQL's agree")


def _identity(database: DatabaseSide, stripe: StripeSide) -> Iterator[Finding]:
    account = stripe.account.id if stripe.account else database.settings.stripe.account
    yield from doctor.identity(database.connection, account, livemode=stripe.livemode)
    yield from inspection.unreadable_marks(database.connection)
