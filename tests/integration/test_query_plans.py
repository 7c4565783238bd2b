"""The statements of a run use their indexes: what they cost grows with what is unreported, never with history.

Each statement is explained as the adapters send it, with its own parameters, on tables where history is most of it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from meterctl.actions.collect import row_window
from meterctl.core.model import PAST_LIMIT, RESEND_LIMIT, Claim, Heard, Outcome, OutcomeKind
from meterctl.core.spans import DAY, HOUR, Span
from meterctl.core.state import Transition, advance
from meterctl.ports import ClaimRequest, PageKey
from meterctl.postgres.connect import connect
from meterctl.postgres.ledger import PostgresMeterLedger
from meterctl.postgres.reconciliations import PostgresReconciliations
from meterctl.postgres.rows import PostgresRows
from meterctl.postgres.summary import meter_figures
from meterctl.postgres.usage_queries import LedgerOwner
from meterctl.settings import RowsMeter, load_settings

HISTORY_ROWS = 20_000
UNREPORTED_ROWS = 400
CUSTOMERS = 50

RUN_ID = 7
NOW = datetime.now(UTC)

Plan = dict[str, Any]


class Explaining(psycopg.Cursor[Any]):
    """Explains what it is about to execute."""

    plans: list[Plan]

    def execute(self, query: Any, params: Any = None, **options: Any) -> "Explaining":
        text = query if isinstance(query, str) else query.as_string(None)
        if text.startswith(("WITH", "UPDATE", "SELECT")):
            explain = psycopg.Cursor(self.connection)
            found = explain.execute("EXPLAIN (FORMAT JSON) " + text, params).fetchone()
            assert found is not None
            self.plans.append(found[0][0]["Plan"])
        return super().execute(query, params, **options)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that explains, on a database with history and some unreported rows."""
    with connect(database_url) as connection:
        fill(connection)
        Explaining.plans = []
        connection.cursor_factory = Explaining
        yield connection


def fill(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "INSERT INTO subscriptions (user_id, stripe_customer_id)"
        " SELECT 'user-' || n, 'cus_' || n FROM generate_series(1, %s) AS n",
        [CUSTOMERS],
    )
    connection.execute(
        """
        INSERT INTO usage_events (workspace_id, user_id, quantity, created_at, stripe_reported_at)
        SELECT 'ws', 'user-' || (1 + n %% %(customers)s), 1, now() - interval '30 days' + n * interval '1 minute',
               CASE WHEN n <= %(history)s THEN now() END
        FROM generate_series(1, %(history)s + %(unreported)s) AS n
        """,
        {"customers": CUSTOMERS, "history": HISTORY_ROWS, "unreported": UNREPORTED_ROWS},
    )
    connection.execute(
        """
        INSERT INTO meterctl.meter_events (
            meter, event_name, identifier, customer, value, quantity, occurred_at, sent_timestamp, payload, subject,
            source_row_id, state, attempt_count, answers_heard, last_attempt_at, accepted_at, settled_by, run_id,
            collected_at, livemode, account)
        SELECT 'ai_suggestion', 'ai_suggestion', workspace_id || '-' || user_id || '-' || id,
               'cus_' || substr(user_id, 6), 1, 1, created_at, created_at, '{}', user_id,
               id, 'accepted', 1, 1, created_at, created_at, 'answer', 1, created_at, false, 'acct_example'
        FROM usage_events WHERE stripe_reported_at IS NOT NULL
        """
    )
    connection.execute("INSERT INTO meterctl.identity (account, livemode, since) VALUES ('acct_example', false, now())")
    connection.execute("ANALYZE")


@pytest.fixture
def source(connection: psycopg.Connection[Any], database_url: str) -> PostgresRows:
    return source_of(connection, database_url)


def source_of(connection: psycopg.Connection[Any], database_url: str, **changes: object) -> PostgresRows:
    settings = load_settings(config_file=None, environ={"DATABASE_URL": database_url}, flags={})
    meter = settings.meters["ai_suggestion"]
    assert isinstance(meter, RowsMeter)
    owner = LedgerOwner(account="acct_example", livemode=False)
    return PostgresRows(connection, "ai_suggestion", meter.model_copy(update=changes), settings.lookups, owner)


@pytest.fixture
def ledger(connection: psycopg.Connection[Any], source: PostgresRows) -> PostgresMeterLedger:
    return PostgresMeterLedger(
        connection,
        meter="ai_suggestion",
        event_name="ai_suggestion",
        run_id=RUN_ID,
        stamp_rows=lambda row_ids, now: source.stamp(row_ids, now=now),
    )


@pytest.fixture
def collected(source: PostgresRows, connection: psycopg.Connection[Any]) -> None:
    """The unreported rows are in the ledger, and PostgreSQL knows."""
    source.collect(row_window(NOW, recent=None), None, batch_size=1000, now=NOW)
    connection.execute("ANALYZE")
    Explaining.plans.clear()


def request(*retry_ids: int, customers: tuple[str, ...] = (), scan_max: int = 0) -> ClaimRequest:
    return ClaimRequest(
        fresh_max=24,
        customers=customers,
        scan_max=scan_max,
        after_customer="",
        retry_ids=retry_ids,
        now=NOW,
        doubt_since=NOW,
        doubt_horizon=NOW - RESEND_LIMIT,
        expired_before=NOW - PAST_LIMIT,
    )


def claim_some(ledger: PostgresMeterLedger) -> tuple[Claim, ...]:
    claimed = ledger.exchange([], request(customers=("cus_8", "cus_9"), scan_max=22), now=NOW)
    assert len(claimed.claims) == 24
    return claimed.claims


def answered(claim: Claim, kind: OutcomeKind) -> tuple[Heard, Transition]:
    outcome = Outcome(kind=kind, heard=True, status=200)
    heard = Heard(claim=claim, outcome=outcome)
    return heard, advance(claim, outcome, now=NOW, grace=timedelta(hours=1))


# Reading plans


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def accesses(plans: list[Plan]) -> dict[str, set[str]]:
    """Return table → how its rows are found: names of indexes, or `Seq Scan`."""
    found: dict[str, set[str]] = {}
    for plan in plans:
        for node in nodes(plan):
            if "Relation Name" in node and node["Node Type"] != "ModifyTable":
                indexes = {str(under["Index Name"]) for under in nodes(node) if "Index Name" in under}
                found.setdefault(node["Relation Name"], set()).update(indexes or {str(node["Node Type"])})
    return found


# The statements


@pytest.mark.parametrize("key", [None, PageKey(occurred_at=NOW - timedelta(days=17), row_id="19000")])
def test_a_page_of_rows(source: PostgresRows, key: PageKey | None) -> None:
    """The page itself, the events its rows have already, and identifiers that are taken."""
    source.collect(row_window(NOW, recent=None), key, batch_size=100, now=NOW)
    plan = Explaining.plans[-1]
    ways = accesses([plan])
    assert ways["usage_events"] == {"usage_events_unreported"}
    assert ways["meter_events"] == {"one_live_event_per_row", "meter_events_identifier_key"}
    assert "Sort" not in {node["Node Type"] for node in page_of(plan)}, "pages come out of the index in order"


def test_a_page_of_rows_before_the_ledgers_first_analyze(
    source: PostgresRows, connection: psycopg.Connection[Any]
) -> None:
    """Without statistics PostgreSQL takes one meter for a few events, and would read them all for every page."""
    connection.execute("DELETE FROM pg_statistic WHERE starelid = 'meterctl.meter_events'::regclass")
    source.collect(row_window(NOW, recent=None), None, batch_size=100, now=NOW)
    probes = [n for n in nodes(Explaining.plans[-1]) if n.get("Index Name") == "one_live_event_per_row"]
    assert len(probes) == 1
    assert "source_row_id" in probes[0]["Index Cond"]


@pytest.mark.parametrize(
    "key", [None, PageKey(occurred_at=NOW.replace(tzinfo=None) - timedelta(days=17), row_id="19000")]
)
def test_a_page_of_rows_in_local_time(
    connection: psycopg.Connection[Any], database_url: str, key: PageKey | None
) -> None:
    """The zone makes expressions of the column's values; the index must still bound the page on both sides."""
    connection.execute("ALTER TABLE usage_events ALTER created_at TYPE timestamp; ANALYZE usage_events")
    source_of(connection, database_url, time_zone="Europe/Berlin").collect(
        row_window(NOW, recent=None), key, batch_size=100, now=NOW
    )
    (scan,) = (n for n in page_of(Explaining.plans[-1]) if n.get("Index Name") == "usage_events_unreported")
    assert ("created_at >= " in scan["Index Cond"], "created_at <= " in scan["Index Cond"]) == (True, True)
    assert "Sort" not in {node["Node Type"] for node in page_of(Explaining.plans[-1])}


def page_of(plan: Plan) -> Iterator[Plan]:
    """Return the nodes that make the page, before anything is joined."""
    (page,) = (node for node in nodes(plan) if node.get("Subplan Name") == "CTE page")
    return nodes(page)


@pytest.mark.usefixtures("collected")
def test_claim_fresh(ledger: PostgresMeterLedger) -> None:
    claim_some(ledger)
    ways = accesses(Explaining.plans)
    assert ways["meter_events"] == {"claimable", "one_sending_per_lane", "meter_events_pkey", "doubts"}


@pytest.mark.usefixtures("collected")
def test_claim_again(ledger: PostgresMeterLedger) -> None:
    claims = claim_some(ledger)
    ledger.exchange([answered(claim, OutcomeKind.NOT_PROCESSED) for claim in claims], None, now=NOW)
    Explaining.plans.clear()
    claimed = ledger.exchange([], request(*(claim.event.id for claim in claims)), now=NOW)
    assert len(claimed.claims) == 24
    ways = accesses(Explaining.plans)["meter_events"]
    # PostgreSQL 14 looks for what is being sent in `not_at_rest`, which holds no history either.
    assert ways <= {"claimable", "one_sending_per_lane", "meter_events_pkey", "doubts", "not_at_rest"}


@pytest.mark.usefixtures("collected")
def test_record_and_stamp(ledger: PostgresMeterLedger) -> None:
    claims = claim_some(ledger)
    Explaining.plans.clear()
    ledger.exchange([answered(claim, OutcomeKind.ACCEPTED) for claim in claims], None, now=NOW)
    record, stamp = Explaining.plans
    assert accesses([record])["meter_events"] <= {"meter_events_pkey", "not_at_rest", "one_sending_per_lane"}
    assert accesses([stamp])["usage_events"] <= {"usage_events_pkey", "usage_events_unreported"}


@pytest.mark.usefixtures("collected")
def test_what_a_run_asks_before_and_after(ledger: PostgresMeterLedger) -> None:
    ledger.take_over()
    ledger.expire(expired_before=NOW - PAST_LIMIT)
    ledger.untold()
    ledger.oldest_lanes(10, doubt_horizon=NOW)
    ledger.count_open(now=NOW)
    assert len(Explaining.plans) == 5
    for plan in Explaining.plans:
        assert "Seq Scan" not in accesses([plan]).get("meter_events", set()), plan


def test_the_books_of_one_day(connection: psycopg.Connection[Any]) -> None:
    """A difference is narrowed hour by hour: each time this is asked, of one day of all that history."""
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    day = Span(start=midnight - 20 * DAY, end=midnight - 19 * DAY)
    ledger = PostgresReconciliations(connection, event_name="ai_suggestion", formula="sum", run_id=RUN_ID)
    found = ledger.books(["cus_8"], day, HOUR, fresh_since=NOW)
    assert sum(books.accepted_count for books in found.values()) in {28, 29}
    assert accesses(Explaining.plans)["meter_events"] == {"sent_lately"}


def test_what_is_proven_looks_at_the_newest_comparisons_alone(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "INSERT INTO meterctl.reconciliations (run_id, event_name, customer, range_start, range_end, ledger_total,"
        " stripe_total, read_count, differences, proven, read_at, proven_from, proven_until, proven_at, latest)"
        " SELECT n, 'ai_suggestion', 'cus_' || 1 + n % 50, now() - interval '35 days', now(), 0, 0, 2, '[]', true,"
        " now(), now() - interval '35 days', now(), now(), n > 19950 FROM generate_series(1, 20000) AS n"
    )
    connection.execute("ANALYZE")
    Explaining.plans.clear()
    (figures,) = meter_figures(connection, NOW, {})
    assert figures.proven_up_to is not None
    assert accesses(Explaining.plans)["reconciliations"] == {"latest_reconciliation"}
