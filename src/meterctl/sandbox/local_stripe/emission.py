"""How an event gets into the books."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import cast

from meterctl.sandbox.local_stripe.events import API_VERSION, RelatedObject, SnapshotEvent, ThinEvent
from meterctl.sandbox.local_stripe.model import Json
from meterctl.sandbox.local_stripe.rules import Context
from meterctl.sandbox.local_stripe.store import Books

API_VERSION_BEFORE_BASIL = "2025-02-24.acacia"
"""The last version in which a subscription, not its items, has a period."""


def emit(
    books: Books,
    kind: str,
    about: Mapping[str, object],
    context: Context,
    *,
    previous: Json | None = None,
    created: datetime | None = None,
    api_version: str | None = None,
) -> SnapshotEvent:
    """Keep a v1 event of type `kind` with the object `about` as it is now; return it."""
    version = API_VERSION_BEFORE_BASIL if context.options.events_before_basil else API_VERSION
    event = SnapshotEvent(
        id=books.new_id("evt_"),
        type=kind,
        object=cast("Json", json.loads(json.dumps(about))),  # a copy that later changes do not reach
        previous=previous,
        created=(created or context.now).replace(microsecond=0),
        emitted=context.now,
        api_version=api_version or version,
        livemode=books.livemode,
    )
    books.snapshots.append(event)
    return event


def emit_thin(
    books: Books, kind: str, data: Json, *, related: RelatedObject | None, created: datetime, emitted: datetime
) -> ThinEvent:
    """Keep a v2 event of type `kind`; return it."""
    event = ThinEvent(
        id=books.new_id("evt_"),
        type=kind,
        data=data,
        related=related,
        created=created.replace(microsecond=created.microsecond // 1000 * 1000),
        emitted=emitted,
        livemode=books.livemode,
    )
    books.thin_events.append(event)
    return event
