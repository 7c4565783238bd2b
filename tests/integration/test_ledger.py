"""The ledger's own promises: named constraints, conditional records, claims that two runs race for."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from meterctl.core.model import Claim, Heard, Outcome, OutcomeKind
from meterctl.core.state import advance
from meterctl.ports import Claimed, ClaimRequest
from meterctl.postgres.ledger import PostgresMeterLedger

NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SENDING = "state = 'sending', claimed_at = now(), run_id = 1, attempt_count = 1"


@pytest.fixture
def connection(database_url: str) -> Any:
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def add_event(connection: psycopg.Connection, customer: str = "cus_1", **columns: Any) -> int:
    n = connection.execute("SELECT count(*) FROM meterctl.meter_events").fetchone()
    values = {
        "meter": "m",
        "event_name": "m",
        "identifier": f"i{n}",
        "customer": customer,
        "value": 1,
        "quantity": 1,
        "occurred_at": NOW,
        "sent_timestamp": NOW,
        "payload": '{"value": "1"}',
        "source_row_id": f"r{n}",
        "state": "pending",
        "collected_at": NOW,
        "livemode": False,
        "account": "acct_1",
    } | columns
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    text = f"INSERT INTO meterctl.meter_events ({names}) VALUES ({places}) RETURNING id"  # noqa: S608 -- the test's own words
    row = connection.execute(text, list(values.values())).fetchone()
    assert row is not None
    return int(row[0])


def ledger(connection: psycopg.Connection, run_id: int = 1, **changes: Any) -> PostgresMeterLedger:
    fields: dict[str, Any] = {"meter": "m", "event_name": "m", "stamp_rows": lambda rows, _: len(rows)}
    return PostgresMeterLedger(connection, run_id=run_id, **(fields | changes))


def request(now: datetime = NOW, **changes: Any) -> ClaimRequest:
    fields: dict[str, Any] = {
        "fresh_max": 10,
        "customers": (),
        "scan_max": 10,
        "after_customer": "",
        "retry_ids": (),
        "now": now,
        "doubt_since": now,
        "doubt_horizon": now - 23 * HOUR,
        "expired_before": now - timedelta(days=35),
    }
    return ClaimRequest(**(fields | changes))


def claimed_ids(claimed: Claimed) -> list[int]:
    return [claim.event.id for claim in claimed.claims]


def answer(claim: Claim, kind: OutcomeKind = OutcomeKind.ACCEPTED) -> Any:
    heard = Heard(claim=claim, outcome=Outcome(kind=kind, heard=True, code="c", message="m"))
    return heard, advance(claim, heard.outcome, now=NOW, grace=HOUR)


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("state = 'pending', doubt_since = now()", "pending_has_no_doubt"),
        ("state = 'rejected', error_code = 'x', doubt_since = now()", "rejected_has_no_doubt"),
        ("state = 'rejected'", "rejected_has_code"),
        ("state = 'in_doubt', doubt_since = now()", "in_doubt_has_doubt"),
        ("state = 'in_doubt', ever_in_doubt = true", "in_doubt_has_doubt"),
        ("state = 'sending'", "sending_has_claim"),
        (
            f"claimed_from = 'pending', {SENDING}",
            "sending_has_doubt_and_run",
        ),
        (
            f"doubt_since = now(), claimed_from = 'rejected', {SENDING}",
            "claimed_from_is_sendable",
        ),
        (
            f"doubt_since = now(), claimed_from = 'in_doubt', {SENDING}",
            "claim_from_doubt_was_in_doubt",
        ),
        ("claimed_from = 'pending', claimed_at = now()", "sending_has_claim"),
        ("state = 'accepted'", "accepted_says_when_and_how"),
        ("state = 'accepted', accepted_at = now(), settled_by = 'hope'", "settled_by_is_known"),
        (
            "state = 'accepted', accepted_at = now(), settled_by = 'answer', doubt_since = now()",
            "accepted_has_no_doubt",
        ),
        ("state = 'waived'", "closed_has_reason"),
        ("state = 'replaced'", "closed_has_reason"),
        ("state = 'lost'", "state_is_known"),
        ("identifier = NULL", "only_local_rejections_lack_a_part"),
        ("customer = NULL, state = 'rejected', error_code = 'resource_missing'", "only_local_rejections_lack_a_part"),
        ("answers_heard = 1", "answers_are_fewer_than_attempts"),
        ("value = 'NaN'", "value_is_finite"),
    ],
)
def test_the_database_refuses_what_the_protocol_forbids(
    connection: psycopg.Connection, change: str, constraint: str
) -> None:
    add_event(connection)
    with pytest.raises(pg.CheckViolation) as refused:
        connection.execute(f"UPDATE meterctl.meter_events SET {change}")  # noqa: S608 -- a table of the test
    assert refused.value.diag.constraint_name == constraint


def test_one_row_has_one_live_event(connection: psycopg.Connection) -> None:
    add_event(connection, source_row_id="1")
    with pytest.raises(pg.UniqueViolation):
        add_event(connection, source_row_id="1")


def test_a_claim_takes_the_oldest_event_of_each_free_lane(connection: psycopg.Connection) -> None:
    first = [add_event(connection, f"cus_{n}") for n in range(3)]
    for n in range(3):
        add_event(connection, f"cus_{n}")
    books = ledger(connection)
    claimed = books.exchange([], request(), now=NOW)
    assert sorted(claimed_ids(claimed)) == first
    assert books.exchange([], request(), now=NOW).claims == (), "one call at a time per customer and meter"


def test_the_scan_goes_on_behind_its_cursor(connection: psycopg.Connection) -> None:
    ids = [add_event(connection, f"cus_{n}") for n in range(5)]
    books = ledger(connection)
    first = books.exchange([], request(scan_max=3), now=NOW)
    assert (claimed_ids(first), first.after_customer, first.scan_ended) == (ids[:3], "cus_2", False)
    second = books.exchange([], request(scan_max=3, after_customer="cus_2"), now=NOW)
    assert (claimed_ids(second), second.scan_ended) == (ids[3:], True)


def test_a_late_writer_changes_nothing(connection: psycopg.Connection) -> None:
    """Run 2 takes over run 1's claim and records; run 1 wakes up and records too."""
    add_event(connection)
    old, new = ledger(connection, 1), ledger(connection, 2)
    stale = old.exchange([], request(), now=NOW).claims[0]
    assert new.take_over() == 1
    fresh = new.exchange([], request(), now=NOW).claims[0]
    old.exchange([answer(stale, OutcomeKind.REJECTED)], None, now=NOW)
    assert state(connection) == "sending"
    new.exchange([answer(fresh)], None, now=NOW)
    old.exchange([answer(stale, OutcomeKind.UNKNOWN)], None, now=NOW)
    assert state(connection) == "accepted"


def state(connection: psycopg.Connection) -> str:
    row = connection.execute("SELECT state FROM meterctl.meter_events").fetchone()
    assert row is not None
    return str(row[0])


def test_the_first_doubt_dates_all_later_ones(connection: psycopg.Connection) -> None:
    add_event(connection)
    books = ledger(connection)
    claim = books.exchange([], request(), now=NOW).claims[0]
    books.exchange([answer(claim, OutcomeKind.UNKNOWN)], None, now=NOW)
    later = NOW + HOUR
    ledger(connection, 2).exchange([], request(later), now=later)
    row = connection.execute("SELECT doubt_since, last_attempt_at, attempt_count FROM meterctl.meter_events").fetchone()
    assert row == (NOW, later, 2)


def test_a_lost_claim_race_loses_nothing_recorded_in_the_same_tick(
    connection: psycopg.Connection, database_url: str
) -> None:
    """Another run claims the lane's second event and has not committed; ours waits, loses, and keeps its answer."""
    add_event(connection, "cus_done")
    books = ledger(connection)
    done = books.exchange([], request(), now=NOW).claims[0]
    add_event(connection, "cus_contested")
    contested = add_event(connection, "cus_contested")
    with psycopg.connect(database_url) as other:
        other.execute(
            "UPDATE meterctl.meter_events SET state = 'sending', claimed_from = 'pending', claimed_at = now(),"
            " doubt_since = now(), run_id = 2, attempt_count = 1 WHERE id = %s",
            [contested],
        )
        threading.Timer(0.3, other.commit).start()
        claimed = books.exchange([answer(done)], request(), now=NOW)
    assert (claimed.lost_race, claimed.claims) == (True, ())
    found = connection.execute("SELECT state FROM meterctl.meter_events ORDER BY id").fetchall()
    assert [row[0] for row in found] == ["accepted", "pending", "sending"]


def test_old_doubts_held_events_and_expired_ones_are_not_claimed(connection: psycopg.Connection) -> None:
    doubt = {"state": "in_doubt", "ever_in_doubt": True}
    add_event(connection, "cus_1", doubt_since=NOW - 23 * HOUR, **doubt)
    add_event(connection, "cus_2", held_reason="a person decides")
    add_event(connection, "cus_3", sent_timestamp=NOW - timedelta(days=36))
    young = add_event(connection, "cus_4", doubt_since=NOW - 22 * HOUR, **doubt)
    books = ledger(connection)
    assert claimed_ids(books.exchange([], request(), now=NOW)) == [young]
    assert books.expire(expired_before=NOW - timedelta(days=35)) == ["r(2,)"]


def test_a_run_tries_an_event_again_only_by_its_id(connection: psycopg.Connection) -> None:
    event = add_event(connection)
    books = ledger(connection)
    claim = books.exchange([], request(), now=NOW).claims[0]
    books.exchange([answer(claim, OutcomeKind.NOT_PROCESSED)], None, now=NOW)
    assert books.exchange([], request(), now=NOW).claims == ()
    again = books.exchange([], request(retry_ids=(event,)), now=NOW).claims[0]
    assert (again.event.id, again.attempt_count, again.idempotency_key) == (event, 2, f"{again.event.identifier}:1")


def test_committed_means_durable(connection: psycopg.Connection) -> None:
    """A promise is observed: the claim's transaction runs with synchronous_commit on, whatever the role's default."""
    connection.execute("SET synchronous_commit = off")
    add_event(connection)
    seen: list[str] = []

    def spy(rows: Any, _: datetime) -> int:
        row = connection.execute("SHOW synchronous_commit").fetchone()
        assert row is not None
        seen.append(row[0])
        return len(rows)

    books = ledger(connection, stamp_rows=spy)
    claim = books.exchange([], request(), now=NOW).claims[0]
    books.exchange([answer(claim)], None, now=NOW)
    assert seen == ["on"]
    assert claim.quantity == Decimal(1)
