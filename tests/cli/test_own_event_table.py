"""The commands beside an endpoint's own table of events: it is adopted, and then it serves."""

from pathlib import Path

import pytest

from cli.conftest import Shell

HOOKS = """
CREATE TABLE hooks (
    id bigserial PRIMARY KEY, event_id text NOT NULL, type text NOT NULL, livemode boolean NOT NULL,
    created timestamptz NOT NULL, payload jsonb NOT NULL)
"""


@pytest.fixture
def own(shell: Shell, tmp_path: Path) -> Shell:
    """With the endpoint's own table of events."""
    config = tmp_path / "own.toml"
    config.write_text('[webhooks]\nevents = "hooks"\n', encoding="utf-8")
    shell.sql(HOOKS)
    shell.extra["METERCTL_CONFIG"] = str(config)
    return shell


def test_events_are_kept_in_an_own_table_once_it_is_adopted(own: Shell) -> None:
    own.stripe.complete_checkout(own.stripe.create_subscription("cus_ada"), client_reference_id="ada")
    assert own.run("webhooks", "pull").code == 78
    adopted = own.run("db", "adopt", "hooks", "--yes")
    assert (adopted.code, own.run("db", "adopt", "--yes").stdout) == (0, "-- nothing to do\n"), adopted.stderr
    assert own.run("db", "check", "-q").code == 0
    assert own.run("webhooks", "pull").stdout == "2 new events (0 known); 2 processed\n"
    assert own.sql("SELECT status, source FROM hooks") == [("processed", "pull")] * 2
    assert own.sql("SELECT user_id FROM subscriptions") == [("ada",)]
    assert len(own.run("webhooks", "list", "--json").document["events"]) == 2


def test_an_unknown_table_is_no_table_to_adopt(own: Shell) -> None:
    done = own.run("db", "adopt", "hoks", "--yes")
    assert done.code == 2
    assert 'no enabled meter has the table "hoks" to adopt; did you mean "hooks"?' in done.stderr
