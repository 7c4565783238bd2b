"""What the actions need from the outside, in the design's words. Adapters: `postgres`, `stripe_api`, `dispatch`."""

from meterctl.ports.events import Acted, StripeEventLists, StripeEventStore
from meterctl.ports.ledger import Claimed, ClaimRequest, MeterLedger, OpenCounts, Undeliverable
from meterctl.ports.reconciliation import Comparison, GroupedReading, GroupedTotals, KnownCustomer, ReconciliationLedger
from meterctl.ports.run import Dispatcher, Lock, MeterCatalog, MeterEvents, StopRequest
from meterctl.ports.settlement import Reading, Settled, SettledEvent, SettlementLedger, Totals
from meterctl.ports.usage import Backlog, KindCount, Page, PageKey, RowWindow, SpanCounts, UsageSource

__all__ = [
    "Acted",
    "Backlog",
    "ClaimRequest",
    "Claimed",
    "Comparison",
    "Dispatcher",
    "GroupedReading",
    "GroupedTotals",
    "KindCount",
    "KnownCustomer",
    "Lock",
    "MeterCatalog",
    "MeterEvents",
    "MeterLedger",
    "OpenCounts",
    "Page",
    "PageKey",
    "Reading",
    "ReconciliationLedger",
    "RowWindow",
    "Settled",
    "SettledEvent",
    "SettlementLedger",
    "SpanCounts",
    "StopRequest",
    "StripeEventLists",
    "StripeEventStore",
    "Totals",
    "Undeliverable",
    "UsageSource",
]
