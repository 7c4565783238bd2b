"""`meters check`: each way in which Stripe's meter is not what the configuration takes it to be, and none."""

from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Shell

ROWS = """
[meters.{key}]
source = "rows"
formula = "{formula}"
table = "usage_events"
reported_at = "{key}_at"
occurred_at = "created_at"
identifier = "{key}-{{id}}"
payers = [{{ lookup = "individual", column = "user_id" }}]
"""
GAUGE = """
[meters.level]
source = "gauge"
table = "sensors"
payers = [{ lookup = "organization", column = "organization_id" }]
"""


def meters(*keys: str, formula: str = 'sum"\nvalue = "quantity') -> str:
    return "".join(ROWS.format(key=key, formula=formula) for key in keys)


def configured(shell: Shell, tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    shell.extra["METERCTL_CONFIG"] = str(file)


def priced(shell: Shell, event_name: str, **fields: str) -> None:
    meter = shell.stripe.create_meter(event_name=event_name, **fields)  # type: ignore[arg-type] # literals, all of them
    shell.stripe.create_price(meter.id)


def test_a_meter_that_fits_is_0_and_needs_no_database(shell: Shell) -> None:
    """Stripe alone is asked: the same check runs where the database cannot be reached from."""
    shell.stripe.create_price(shell.stripe.meters()[0].id)
    shell.database_url = ""
    done = shell.run("meters", "check")
    assert (done.code, done.stderr) == (0, "")
    meter_id = shell.stripe.meters()[0].id
    assert done.stdout == f"OK    ai_suggestion: {meter_id} is active, formula sum, and has a price\n"
    quiet = shell.run("meters", "check", "-q")
    assert (quiet.code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_everything_wrong_with_every_meter_is_told_at_once(shell: Shell, tmp_path: Path) -> None:
    configured(
        shell, tmp_path, meters("ai_sugestion", "off", "formula", "keys", "window", "unpriced", "archived") + GAUGE
    )
    priced(shell, "formula", formula="count")
    priced(shell, "keys", customer_key="who", value_key="how_much")
    priced(shell, "window", event_time_window="day")
    priced(shell, "off")
    shell.stripe.deactivate_meter(shell.stripe.meters()[-1].id)
    shell.stripe.create_meter(event_name="unpriced")
    archived = shell.stripe.create_meter(event_name="archived")
    shell.stripe.create_price(archived.id, active=False)
    priced(shell, "level", formula="last", event_time_window="hour")

    done = shell.run("meters", "check", "--json")
    assert done.code == 78, done.stderr
    document = done.document
    assert (document["schema"], document["exit_code"], document["mode"]) == ("meterctl.meters_check/1", 78, "test")
    told = {
        meter["event_name"]: [(one["status"], one["message"], one["remedy"]) for one in meter["findings"]]
        for meter in document["meters"]
    }
    (missing,) = told["ai_sugestion"]
    assert missing[:2] == ("fail", "Stripe has no such meter in test mode")
    assert "did you mean `ai_suggestion`?" in missing[2]
    assert [one[:2] for one in told["off"]] == [("fail", "it is deactivated and takes no events")]
    assert [one[:2] for one in told["formula"]] == [("fail", 'its formula is "count", the configuration says "sum"')]
    assert told["keys"] == [
        (
            "fail",
            'it reads the customer from "who", meterctl sends "stripe_customer_id"',
            'set customer_payload_key = "who"',
        ),
        (
            "fail",
            'it reads the value from "how_much", meterctl sends "value"',
            'set value_payload_key = "how_much"',
        ),
    ]
    assert [one[:2] for one in told["window"]] == [
        ("fail", 'its event_time_window is "day": only the last event of each day counts, others are lost')
    ]
    for name in ("unpriced", "archived"):
        ((status, message, _),) = told[name]
        assert status == "warn"
        assert message.startswith("no active price is linked to mtr_")
    assert [one[0] for one in told["level"]] == ["ok"], "the last value of each hour is what a level needs"
    level = document["meters"][-1]
    assert (level["source"], level["formula"], level["event_time_window"]) == ("gauge", "last", "hour")
    assert [meter["priced"] for meter in document["meters"]] == [None, True, True, True, True, False, False, True]


def test_unpriced_alone_is_10(shell: Shell) -> None:
    done = shell.run("meters", "check")
    assert done.code == 10
    assert "WARN  ai_suggestion: no active price is linked to mtr_" in done.stdout
    assert "docs/stripe-setup.md" in done.stdout


def test_an_active_meter_counts_and_not_a_deactivated_namesake(shell: Shell) -> None:
    old = shell.stripe.meters()[0]
    shell.stripe.deactivate_meter(old.id)
    priced(shell, "ai_suggestion")
    assert shell.run("meters", "check", "-q").code == 0


def test_prices_that_the_key_may_not_read_are_not_taken_for_none(shell: Shell) -> None:
    shell.stripe.create_price(shell.stripe.meters()[0].id)
    shell.stripe.add_key("rk_test_example", allowed=["meters.*"])
    shell.extra["STRIPE_SECRET_KEY"] = "rk_test_example"  # noqa: S105 -- no secret
    done = shell.run("meters", "check")
    assert done.code == 10
    assert "has a price cannot be seen: Stripe forbids this to the key (403)" in done.stdout
    assert "prices.list" in done.stdout


def long(case: str) -> Any:
    return pytest.param(case, marks=pytest.mark.long)


@pytest.mark.parametrize("case", ["revoked", long("forbidden"), "away", "other account", long("no key"), "live"])
def test_what_keeps_stripe_from_being_asked(shell: Shell, tmp_path: Path, case: str) -> None:
    code, words = {
        "revoked": (77, "Stripe refuses the key (401)"),
        "forbidden": (77, "Stripe forbids this to the key (403)"),
        "away": (69, "Stripe is away"),
        "other account": (78, "the configuration allows only acct_other"),
        "no key": (78, "no Stripe key is set"),
        "live": (78, "the key is a test-mode key"),
    }[case]
    if case == "revoked":
        shell.stripe.revoke_key(shell.stripe.api_key)
    if case == "forbidden":
        shell.stripe.add_key(shell.stripe.api_key, allowed=["prices.*"])
    if case == "away":
        shell.stripe.stop_listening()
    if case == "other account":
        configured(shell, tmp_path, '[stripe]\naccount = "acct_other"\n')
    if case == "no key":
        shell.extra["STRIPE_SECRET_KEY"] = ""
    done = shell.run("meters", "check", *(["--live"] if case == "live" else []))
    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr
