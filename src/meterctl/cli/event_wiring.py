"""What acts on Stripe's events: the handlers that the configuration names, and what they need of Stripe beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from meterctl.actions.stripe_events import EventActions, Handler
from meterctl.clock import Clock
from meterctl.core.error_report import REPORT_TYPES, read_report
from meterctl.core.stripe_event import StripeEvent
from meterctl.errors import ConfigurationError, NotPermittedError, UnavailableError
from meterctl.postgres.connect import Connection
from meterctl.postgres.error_reports import ErrorReports
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.sources import Sources
from meterctl.postgres.stripe_events import event_store
from meterctl.postgres.subscriptions import SubscriptionHandler
from meterctl.settings import RowsMeter, Settings
from meterctl.stripe_api.client import StripeClient, no_key, stripe_client
from meterctl.stripe_api.events import StripeEvents


def client_of(settings: Settings) -> StripeClient | None:
    """Return Stripe's client, None where no key is set."""
    return stripe_client(settings.stripe, connections_max=1) if settings.stripe.api_key is not None else None


@dataclass(kw_only=True, slots=True)
class EventWiring:
    """Makes what acts on events. `account` None: not known yet, for the ledger is nobody's. `client` None: no key."""

    connection: Connection
    settings: Settings
    account: str | None
    clock: Clock
    client: StripeClient | None
    _event_names: dict[str, str | None] = field(default_factory=dict)
    _rows: dict[str, PostgresRows] = field(default_factory=dict)

    @property
    def stripe(self) -> StripeEvents:
        """Stripe's side. Raises ConfigurationError where no key is set."""
        if self.client is None:
            raise no_key()
        return StripeEvents(self.client)

    def actions(self) -> EventActions:
        """Return what acts on events."""
        return EventActions(
            store=event_store(self.connection, self.settings),
            handlers=self._handlers(),
            prepare=self._prepare,
            account=self.account,
            livemode=self.settings.stripe.mode == "live",
        )

    def _handlers(self) -> dict[str, Handler]:
        reports = ErrorReports(
            self.connection,
            levels=self.settings.levels,
            event_name_of=self._event_names.get,
            unstamp=self._unstamp,
            now=self.clock.now,
        )
        found: dict[str, Handler] = dict.fromkeys(REPORT_TYPES, reports.handle)
        if self.settings.webhooks.subscriptions is not None:
            subscriptions = SubscriptionHandler(self.connection, self.settings.webhooks.subscriptions)
            found |= dict.fromkeys(SubscriptionHandler.TYPES, subscriptions.handle)
        return {kind: handler for kind, handler in found.items() if kind in self.settings.webhooks.handle}

    def _prepare(self, event: StripeEvent) -> StripeEvent:
        """Fetch what an event leaves to be fetched, and what its handler will need."""
        try:
            whole = event if event.is_whole else self.stripe.whole(event)
            if whole.type in REPORT_TYPES:
                self._name_meter(read_report(whole).meter_id)
                self._open_rows()
        except NotPermittedError as error:  # the key's fault, not the event's: it waits
            raise UnavailableError(error.message, hint=error.hint) from error
        return whole

    def _name_meter(self, meter_id: str | None) -> None:
        if meter_id is not None and meter_id not in self._event_names and self.client is not None:
            self._event_names[meter_id] = self.stripe.meter_event_name(meter_id)

    def _open_rows(self) -> None:
        """Make ready whatever rows may have to lose a stamp: within the handler's transaction it is too late."""
        sources = Sources(connection=self.connection, settings=self.settings)
        for key, meter in self.settings.enabled_meters.items():
            if isinstance(meter, RowsMeter) and key not in self._rows:
                source = sources.of(key)
                assert isinstance(source, PostgresRows)  # noqa: S101 -- that is what rows meters have
                self._rows[key] = source

    def _unstamp(self, key: str, event_name: str, event_ids: Sequence[int]) -> None:
        """Take stamps off the rows of a meter, or of that which has its event_name by now under another key."""
        meters = self.settings.enabled_meters
        if key not in meters:
            key = next((other for other, meter in meters.items() if meter.event_name == event_name), key)
        meter = self.settings.meters.get(key)
        if key in self._rows:
            self._rows[key].unstamp(event_ids)
        elif meter is None or isinstance(meter, RowsMeter):
            raise ConfigurationError(
                f"meter {key} is not enabled, so the stamps of its rows cannot be taken off",
                hint="enable it in the configuration, then `meterctl webhooks replay --failed`",
            )
