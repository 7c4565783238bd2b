"""What the doctor asks of Stripe. Imported by the command, for it imports the SDK."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from meterctl.actions.check_meters import CheckedMeter, check_meters
from meterctl.actions.doctor import Check
from meterctl.cli.report import guard_mode
from meterctl.core.diagnosis import Finding, failed, passed, skipped
from meterctl.settings import Settings
from meterctl.stripe_api.account import Account, answered_livemode, key_account
from meterctl.stripe_api.client import StripeClient, stripe_client
from meterctl.stripe_api.meters import StripeMeters
from meterctl.stripe_api.permissions import events_permission, totals_permission, write_permission


@dataclass(kw_only=True)
class StripeSide:
    """Stripe, and what it has said so far: `account` and `meters` are there once they have been asked for."""

    settings: Settings
    account: Account | None = None
    meters: list[CheckedMeter] = field(default_factory=list)

    @cached_property
    def _client(self) -> StripeClient:
        return stripe_client(self.settings.stripe, connections_max=1)

    @property
    def livemode(self) -> bool:
        """Whether live mode is meant."""
        return self.settings.stripe.mode == "live"

    def checks(self) -> list[Check]:
        """Return the checks of key, mode, account, meters and permissions, the one that looks at the key first."""
        needs = ("key", "stripe")
        return [
            Check(name="key", ask=self._key),
            Check(name="stripe", ask=self._answers, needs=("key",)),
            Check(name="account", ask=self._account, needs=needs),
            Check(name="meters", ask=self._meters, needs=needs),
            Check(name="write", ask=lambda: write_permission(self._client), needs=needs),
            Check(name="totals", ask=self._totals, needs=needs),
            Check(name="events", ask=self._events, needs=needs),
        ]

    def _key(self) -> Iterator[Finding]:
        guard_mode(self.settings, require_stripe=True)
        yield passed(f"a {self.settings.stripe.key_mode}-mode key, as it is meant")

    def _answers(self) -> Iterator[Finding]:
        answered = answered_livemode(self._client)
        if answered is None:
            yield passed("Stripe answers; in which mode, its first answer to a meter event will show")
        elif answered is self.livemode:
            yield passed(f"Stripe answers in {self.settings.stripe.mode} mode")
        else:
            message = f"Stripe answers in {'live' if answered else 'test'} mode, {self.settings.stripe.mode} is meant"
            yield failed(message, "check the key and the address of Stripe")

    def _account(self) -> Iterator[Finding]:
        self.account = key_account(self._client, self.settings.stripe)
        stated = "as stripe.account says" if self.settings.stripe.account else "stripe.account would refuse any other"
        yield passed(f"account {self.account.id}; {stated}")

    def _meters(self) -> Iterator[Finding]:
        catalog = StripeMeters(self._client)
        for meter in check_meters(self.settings.enabled_meters, catalog, livemode=self.livemode):
            self.meters.append(meter)
            yield from meter.named_findings

    def _totals(self) -> Iterator[Finding]:
        found = next((meter.found for meter in self.meters if meter.found is not None), None)
        if found is None:
            yield skipped("no meter of Stripe's is known whose totals could be asked for")
        else:
            yield from totals_permission(self._client, found.id)

    def _events(self) -> Iterator[Finding]:
        if not self.settings.webhooks.handle:
            yield skipped("webhooks.handle names no type of event")
        yield from events_permission(self._client, self.settings.webhooks.handle)
