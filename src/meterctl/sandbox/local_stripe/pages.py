"""Stripe's pagination over a list of documents: cursors in v1, links in v2."""

from collections.abc import Sequence

from meterctl.sandbox.local_stripe import forms
from meterctl.sandbox.local_stripe.errors import invalid, no_such
from meterctl.sandbox.local_stripe.forms import Param, Params
from meterctl.sandbox.local_stripe.model import Json

LIMIT_DEFAULT = 10
LIMIT_MAX = 100

CURSORS = {"limit": Param(kind="integer"), "starting_after": Param(), "ending_before": Param()}
"""Parameters of every list call."""


def page_of(documents: Sequence[Json], params: Params, *, url: str, what: str) -> Json:
    """Return the list object that `limit`, `starting_after`, `ending_before` ask for, in the order of `documents`.

    `has_more` speaks of the direction of travel, as the SDK's iterator expects.
    """
    limit = _limit(params)
    after, before = forms.text(params, "starting_after"), forms.text(params, "ending_before")
    if after is not None and before is not None:
        raise invalid("You can only specify one of these parameters: starting_after, ending_before.")
    if before is not None:
        rest = documents[: _position(documents, before, what, "ending_before")]
        page = rest[max(0, len(rest) - limit) :]
    else:
        start = 0 if after is None else _position(documents, after, what, "starting_after") + 1
        rest = documents[start:]
        page = rest[:limit]
    return {"object": "list", "data": list(page), "has_more": len(rest) > limit, "url": url}


def linked_page_of(documents: Sequence[Json], params: Params, *, url: str) -> Json:
    """Return the page of a v2 list that `limit` and `page` ask for, with links to its neighbours.

    A page is named after the document it follows or precedes, so that new ones at the top move nothing.
    """
    limit = _limit(params)
    side, _, cursor = (forms.text(params, "page") or "").partition("-")
    if side == "before":
        end = _position(documents, cursor, "page", "page")
        start = max(0, end - limit)
    else:
        start = _position(documents, cursor, "page", "page") + 1 if side else 0
        end = start + limit
    page = list(documents[start:end])

    def link(neighbour: str) -> str:
        return f"{url}?{forms.unparse({**params, 'page': neighbour})}"

    return {
        "data": page,
        "next_page_url": link(f"after-{page[-1]['id']}") if page and documents[end:] else None,
        "previous_page_url": link(f"before-{page[0]['id']}") if page and start else None,
    }


def _limit(params: Params) -> int:
    limit = forms.integer(params, "limit")
    if limit is None:
        return LIMIT_DEFAULT
    if not 1 <= limit <= LIMIT_MAX:
        raise invalid(f"Invalid limit: must be between 1 and {LIMIT_MAX}", param="limit")
    return limit


def _position(documents: Sequence[Json], cursor: str, what: str, param: str) -> int:
    for position, document in enumerate(documents):
        if document["id"] == cursor:
            return position
    raise no_such(what, cursor, param=param)
