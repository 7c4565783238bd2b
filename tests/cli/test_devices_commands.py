"""`report-sensors`, `report-readings` and `db adopt` of a counted table, as an operator runs them."""

from pathlib import Path

import pytest

from cli.conftest import Shell
from metered_devices import COUNTER, GAUGE

CONFIG = """
[lookups.organization]
table = "subscriptions"
subject = "organization_id"
customer = "stripe_customer_id"

[meters.active_sensors]
source = "gauge"
table = "sensors"
where = "is_active"
payers = [{ lookup = "organization", column = "organization_id" }]

[meters.temperature_readings]
source = "counter"
table = "readings"
payers = [{ lookup = "organization", column = "organization_id" }]
"""


@pytest.fixture
def devices(shell: Shell, tmp_path: Path) -> Shell:
    """An organisation that pays, one that does not, three sensors each."""
    file = tmp_path / "devices.toml"
    file.write_text(CONFIG, encoding="utf-8")
    shell.extra["METERCTL_CONFIG"] = str(file)
    shell.stripe.create_meter(event_name=GAUGE, formula="last")
    shell.stripe.create_meter(event_name=COUNTER)
    shell.stripe.create_customer("cus_acme")
    shell.sql("INSERT INTO organizations VALUES ('acme', 'Acme'), ('free', 'Free')")
    shell.sql("INSERT INTO subscriptions (organization_id, stripe_customer_id) VALUES ('acme', 'cus_acme')")
    shell.sql(
        "INSERT INTO sensors (id, organization_id) SELECT o.id || n, o.id FROM organizations o, generate_series(1, 3) n"
    )
    return shell


def test_levels_are_reported_and_skips_are_counted(devices: Shell) -> None:
    done = devices.run("report-sensors", "--json")
    assert (done.code, done.document["totals"]["reported"], done.document["totals"]["skipped"]) == (0, 1, 1)
    assert devices.stripe.totals() == {(GAUGE, "cus_acme"): 3}
    assert "no Stripe customer" in done.stderr
    again = devices.run("report-sensors", "-q")
    assert (again.code, again.stdout, again.stderr) == (0, "", "")


def test_a_level_by_hand(devices: Shell) -> None:
    assert devices.run("report-sensors", "--subject", "acme", "--value", "12").code == 0
    assert devices.stripe.totals() == {(GAUGE, "cus_acme"): 12}
    other = devices.run("report-sensors", "--subject", "acme", "--value", "13")
    assert (other.code, "reported with 12 for this step" in other.stderr) == (65, True)
    free = devices.run("report-sensors", "--subject", "free", "--value", "1")
    assert (free.code, "free: no Stripe customer" in free.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--subject", "acme"), 2, "belong together"),
        (("--value", "3"), 2, "belong together"),
        (("--subject", "acme", "--value", "many"), 2, "no number"),
        (("--subject", "acme", "--value", "-1"), 2, "no level"),
        (("--at", "2020-01-01"), 2, "35 days"),
        (("--at", "yesterday"), 2, "no instant"),
        (("--meter", COUNTER), 2, 'source = "gauge"'),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    devices: Shell, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = devices.run("report-sensors", *arguments)
    assert (done.code, said in done.stderr) == (code, True)
    assert devices.sql("SELECT count(*) FROM meterctl.meter_events") == [(0,)]


def test_readings_are_counted_from_adoption_on_and_reported(devices: Shell) -> None:
    before = devices.run("db", "check")
    assert (before.code, "meterctl db adopt readings" in before.stdout) == (78, True)
    shown = devices.run("db", "adopt", "readings", "--print")
    assert "CREATE OR REPLACE TRIGGER" in shown.stdout
    assert devices.run("db", "adopt", "readings", "--yes").code == 0
    assert devices.run("db", "check").code == 0
    devices.sql(
        "INSERT INTO readings (organization_id, sensor_id, temperature_c, recorded_at)"
        " SELECT 'acme', 'acme1', 20, now() + interval '1 second' * n FROM generate_series(1, 40) AS n"
    )
    assert devices.run("report-readings", "--json").document["totals"]["total"] == 0, "the hour is open"
    plan = devices.run("report-readings", "-n", "--include-open-window")
    assert "would send 1 events, 40 units" in plan.stdout
    done = devices.run("report-readings", "--include-open-window", "--json")
    assert (done.code, done.document["totals"]["units"]) == (0, "40")
    assert devices.stripe.totals() == {(COUNTER, "cus_acme"): 40}
    assert devices.run("summary").code == 0


def test_recorded_usage_of_no_meter_is_a_problem_of_every_run(devices: Shell) -> None:
    devices.sql("SELECT meterctl.record_usage('bytes', 'acme', 5)")
    for command in ("report", "report-sensors"):
        done = devices.run(command)
        assert (done.code, "1 unknown_meter (e.g. acme)" in done.stderr) == (10, True)
    assert devices.run("summary").code == 10


def test_all_meters_are_reported_at_once(devices: Shell) -> None:
    assert devices.run("db", "adopt", "--yes").code == 0
    devices.sql("SELECT meterctl.record_usage('temperature_readings', 'acme', 5, now() - interval '3 hours')")
    done = devices.run("report", "--json")
    assert (done.code, done.document["totals"]["reported"]) == (0, 2)
    assert devices.stripe.totals() == {(COUNTER, "cus_acme"): 5, (GAUGE, "cus_acme"): 3}


def test_usage_that_cannot_be_sent_is_open_in_the_summary_until_it_can(devices: Shell) -> None:
    assert devices.run("db", "adopt", "--yes").code == 0
    devices.sql("SELECT meterctl.record_usage('temperature_readings', 'acme', 0.5, now() - interval '3 hours')")
    told = devices.run("summary", "--json")
    assert (told.code, [one["code"] for one in told.document["problems"]]) == (10, ["local:value_fractional"])
    assert "the next report takes it" in told.document["problems"][0]["hint"]
    devices.sql("SELECT meterctl.record_usage('temperature_readings', 'acme', 0.5, now() - interval '3 hours')")
    assert devices.run("summary").code == 0
