"""The lock as the doctor tries it, where the address leads to more than one server."""

import psycopg

from meterctl.clock import SystemHostClock
from meterctl.core.diagnosis import Status
from meterctl.postgres.doctor import lock
from meterctl.sandbox.postgres import EmbeddedPostgres
from postgres_fixtures import in_memory

TRIES_MAX = 40
"""Where two connections lead is chance: that they always meet on one server is one case in 2**40."""


def test_an_address_that_leads_to_two_servers_does_not_keep_a_lock(pg_server: EmbeddedPostgres) -> None:
    with in_memory(), EmbeddedPostgres() as second:
        one, other = (psycopg.conninfo.conninfo_to_dict(it.conninfo()) for it in (pg_server, second))
        both = {name: f"{one[name]},{other[name]}" for name in ("host", "port")}
        address = psycopg.conninfo.make_conninfo(pg_server.conninfo(), **both, load_balance_hosts="random")
        tries = (only for _ in range(TRIES_MAX) for only in lock(address, SystemHostClock()))
        told = next(finding for finding in tries if finding.status is Status.FAIL)
        alone = list(lock(second.conninfo(), SystemHostClock()))
    assert told.message == "two connections hold the same lock: they lead to different servers"
    assert [finding.status for finding in alone] == [Status.OK]
