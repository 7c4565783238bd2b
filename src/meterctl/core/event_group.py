"""Events of the ledger taken together, as a person decides about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class EventGroup:
    """Events of one meter, state and error code. `customer_count` is of the whole selection they belong to."""

    meter: str
    state: str
    code: str | None
    units: Decimal
    ids: Sequence[int]
    customer_count: int
