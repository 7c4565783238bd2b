"""What is known of a subscription: of each kind of event the newest, so that neither order nor repetition matters.

`joined` takes the greater of two by a total order: it is commutative, associative and idempotent. What the row of the
application's table says is a function of the facts (`row_of`), so any order of the same events ends in the same row.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

USER, ORGANIZATION = "user", "organization"
"""Who can subscribe."""

UNMAPPED = "unmapped"
"""What a checkout session comes to that does not say who subscribed."""

ENDED = ("canceled", "incomplete_expired")
"""Statuses that no subscription leaves again (OpenAPI, `subscription.status`)."""

Row = Mapping[str, object]
"""Values of a row, by the configuration's keys that name their columns."""

PAST_DUE = "past_due"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The subscription itself, as of an event. `ended_at` is None while it lives, a period's bound where unknown."""

    created: datetime
    event_id: str
    customer: str
    status: str
    started_at: datetime
    ended_at: datetime | None
    period_start: datetime | None
    period_end: datetime | None

    @property
    def key(self) -> tuple[datetime, bool, str]:
        """What makes one newer than another: of the same second, an end is the last that happens."""
        return self.created, self.ended_at is not None, self.event_id


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentFailed:
    """An invoice of the subscription was not paid."""

    created: datetime
    event_id: str
    customer: str

    @property
    def key(self) -> tuple[datetime, str]:
        """What makes one newer than another."""
        return self.created, self.event_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkout:
    """Somebody subscribed: `reference` is the session's client_reference_id, the other two are of its metadata."""

    created: datetime
    event_id: str
    customer: str
    reference: str | None
    user: str | None
    organization: str | None

    @property
    def key(self) -> tuple[datetime, str]:
        """What makes one newer than another."""
        return self.created, self.event_id

    def subject(self, known: Collection[str]) -> tuple[str, str] | None:
        """Return who subscribed, as (USER or ORGANIZATION, id), or None if it is not told of those in `known`.

        A reference is a user's, unless the metadata name it as the organization's, or only organizations are known.
        """
        of_organization = self.reference == self.organization or (USER not in known and self.organization is None)
        told = (
            (ORGANIZATION if of_organization else USER, self.reference),
            (USER, self.user),
            (ORGANIZATION, self.organization),
        )
        return next(((kind, text) for kind, text in told if text is not None and kind in known), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that events told of one subscription."""

    snapshot: Snapshot | None = None
    payment_failed: PaymentFailed | None = None
    checkout: Checkout | None = None

    @property
    def customer(self) -> str:
        """The Stripe customer, of whom every event tells."""
        return next(fact.customer for fact in (self.snapshot, self.checkout, self.payment_failed) if fact)

    @property
    def is_checkout_only(self) -> bool:
        """Whether nothing but who subscribed is known."""
        return self.snapshot is None and self.payment_failed is None

    def include(self, other: "Facts") -> bool:
        """Whether nothing newer is known than the other facts."""
        return all(
            getattr(other, kind) in {None, getattr(self, kind)} for kind in ("snapshot", "payment_failed", "checkout")
        )


_F = TypeVar("_F", Snapshot, PaymentFailed, Checkout)


def joined(one: Facts, other: Facts) -> Facts:
    """Return the newer facts of both."""
    return Facts(
        snapshot=_newer(one.snapshot, other.snapshot),
        payment_failed=_newer(one.payment_failed, other.payment_failed),
        checkout=_newer(one.checkout, other.checkout),
    )


def _newer(one: _F | None, other: _F | None) -> _F | None:
    return max((fact for fact in (one, other) if fact is not None), key=lambda fact: fact.key, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What a row of the application's table says already, whoever wrote it.

    `status` is None where no column is mapped. `ended_at` lies far ahead while the row has not ended. `event_at` is the
    instant of the snapshot that it holds, far back where none is known.
    """

    status: str | None
    ended_at: datetime
    event_at: datetime

    def changes_by(self, failed: PaymentFailed) -> bool:
        """Whether a failed payment is news to it."""
        is_live = self.status is not None and self.status not in ENDED
        return is_live and self.event_at <= failed.created < self.ended_at


def row_of(facts: Facts, held: Held | None) -> Row:
    """Given the facts and the row as it is (None: there is none), return what it is to say; empty: it stays as it is.

    A snapshot is never written over a newer one. A payment that failed after what the row holds still counts, but makes
    no row by itself, and nothing of a subscription that has ended.
    """
    snapshot, failed = facts.snapshot, facts.payment_failed
    if snapshot and (held is None or held.event_at <= snapshot.created):
        return {
            "status": PAST_DUE if _failed_since(snapshot, failed) else snapshot.status,
            "started_at": snapshot.started_at,
            "ended_at": snapshot.ended_at,
            "period_start": snapshot.period_start,
            "period_end": snapshot.period_end,
            "event_at": snapshot.created,
        }
    if failed and held and held.changes_by(failed):
        return {"status": PAST_DUE}
    return {}


def _failed_since(snapshot: Snapshot, failed: PaymentFailed | None) -> bool:
    """Whether a payment failed after the snapshot, and it was not known there already."""
    is_live = snapshot.ended_at is None and snapshot.status not in ENDED
    return is_live and failed is not None and failed.key > (snapshot.created, snapshot.event_id)


def document_of(facts: Facts) -> dict[str, Any]:
    """Return the facts as JSON."""
    return {
        kind: {key: value.isoformat() if isinstance(value, datetime) else value for key, value in fact.items()}
        for kind, fact in asdict(facts).items()
        if fact is not None
    }


def facts_in(document: Mapping[str, Mapping[str, Any]]) -> Facts:
    """Return the facts that `document_of` made a document of."""
    return Facts(**{kind: _KINDS[kind](**_values(fact)) for kind, fact in document.items()})


_KINDS: Mapping[str, Any] = {"snapshot": Snapshot, "payment_failed": PaymentFailed, "checkout": Checkout}
_INSTANTS = {"created", "started_at", "ended_at", "period_start", "period_end"}


def _values(fact: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: datetime.fromisoformat(value) if key in _INSTANTS and value is not None else value
        for key, value in fact.items()
    }
