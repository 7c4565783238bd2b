"""A local Stripe for Billing Meters: real HTTP on loopback, stateful, scriptable.

`LocalStripe` serves in a thread, `StripeProcess` in a process of its own; `control` lists the routes of `/_sandbox`.
"""

from meterctl.sandbox.local_stripe.clock import SandboxClock
from meterctl.sandbox.local_stripe.deliveries import Delivery
from meterctl.sandbox.local_stripe.events import RelatedObject, SnapshotEvent, ThinEvent
from meterctl.sandbox.local_stripe.faults import Fault, FaultKind, RandomFaults
from meterctl.sandbox.local_stripe.model import Customer, LoggedRequest, Meter, StoredEvent
from meterctl.sandbox.local_stripe.options import StripeOptions
from meterctl.sandbox.local_stripe.process import ControlError, StripeProcess
from meterctl.sandbox.local_stripe.rejections import AsyncRejection, RandomRejections
from meterctl.sandbox.local_stripe.server import LocalStripe

__all__ = [
    "AsyncRejection",
    "ControlError",
    "Customer",
    "Delivery",
    "Fault",
    "FaultKind",
    "LocalStripe",
    "LoggedRequest",
    "Meter",
    "RandomFaults",
    "RandomRejections",
    "RelatedObject",
    "SandboxClock",
    "SnapshotEvent",
    "StoredEvent",
    "StripeOptions",
    "StripeProcess",
    "ThinEvent",
]
