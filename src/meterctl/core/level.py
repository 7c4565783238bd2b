"""What a person may ask of a gauge beyond its levels of now."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from meterctl.core.scope import UsageSpan

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelRequest:
    """Nothing of it by default.

    `at`: report the levels for this instant, aware UTC. `subject` and `level`: this subject's is that, whatever the
    table says. `insisted`: even behind a newer one. `accept_zeros`: even if most levels fall to 0 at once. `gap`: only
    of customers without a level in that span, and where a newer one bills, nothing.
    """

    at: datetime | None = None
    subject: str | None = None
    level: "Decimal | None" = None
    insisted: bool = False
    accept_zeros: bool = False
    gap: UsageSpan | None = None
