"""`config generate`, `validate` and `show`, as whoever sets meterctl up runs them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Finished
from cli.nursery import nursery
from meterctl.settings import load_settings

OWN = """
[stripe]
invoice_grace_h = 24

[lookups.plan]
table = "Shop.Plan"
subject = "orgId"
customer = "stripeId"
time_zone = "Europe/Berlin"

[meters."a b"]
source = "rows"
formula = "count"
table = "Shop.ApiCall"
occurred_at = "createdAt"
time_zone = "UTC"
since = 2026-12-01T00:00:00+01:00
where = '''"Kind" = 'x\\y'
  OR true'''
payload = { region = "Region \\"Code\\"", "k.2" = "k" }
payers = [{ lookup = "plan", column = "orgId" }]

[meters.seats]
source = "gauge"
table = "seats"
step = "15m"
payers = [{ lookup = "plan", column = "org" }]

[webhooks]
handle = ["customer.subscription.deleted"]
events = "Shop.Event"

[webhooks.subscriptions]
table = "Shop.Plan"
subscription = "sub id"
customer = "stripeId"
"""
SECRETS = {
    "DATABASE_URL": "postgresql://app:hunter2@127.0.0.1/billing",
    "STRIPE_SECRET_KEY": "sk_test_example",
    "STRIPE_WEBHOOK_SECRET": "whsec_example",
    "PGPASSWORD": "hunter3",
}


def meterctl(*arguments: object, **environ: str) -> Finished:
    """Run the command where nothing is set but what the test sets."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | environ
    return Finished(*nursery().run(list(map(str, arguments)), environment, stripe_base=None, timeout_s=60))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    return path


def sections(path: Path | None) -> tuple[Any, ...]:
    settings = load_settings(config_file=path, environ={}, flags={}, require_database=False)
    return settings.stripe, dict(settings.lookups), dict(settings.meters), settings.webhooks


# generate


def test_what_is_generated_validates_and_is_what_runs_without_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert meterctl("config", "generate", "--output", file) == Finished(0, "", "")
    assert file.read_text("utf-8") == meterctl("config", "generate").stdout
    valid = meterctl("config", "validate", file)
    assert (valid.code, valid.stdout) == (0, f"{file}: valid; enabled meters: ai_suggestion\n")
    assert sections(file) == sections(None)


def test_keys_that_are_commented_out_may_be_used_as_they_are(tmp_path: Path) -> None:
    """Each begins a line with `# key = `; whoever takes the sign away must not find a mistake of ours."""
    text = meterctl("config", "generate").stdout
    used = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert used.count("\n# ") < text.count("\n# ") - 5
    file = tmp_path / "config.toml"
    file.write_text(used.replace("acct_…", "acct_1Example"), encoding="utf-8")
    done = meterctl("config", "validate", file)
    assert (done.code, done.stderr) == (0, "")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("mine", encoding="utf-8")
    done = meterctl("config", "generate", "--output", file)
    assert (done.code, file.read_text("utf-8")) == (2, "mine")
    assert "--force" in done.stderr
    assert meterctl("config", "generate", "--output", file, "--force").code == 0
    assert file.read_text("utf-8").startswith("# ")
    assert meterctl("config", "generate", "--output", tmp_path / "no" / "such").code == 2


# validate


def test_everything_wrong_is_said_at_once(own: Path) -> None:
    own.write_text(OWN.replace("subject", "subjct").replace('"count"', '"cuont"').replace('"UTC"', '"UTC+1"'))
    done = meterctl("config", "validate", own, **SECRETS | {"STRIPE_SECRET_KEY": "pk_test_example"})
    assert (done.code, done.stdout) == (78, "")
    for line in (
        f"{own}: lookups.plan.subjct: is not a key; did you mean `subject`?",
        f'{own}: meters."a b".formula: must be "sum" or "count"; did you mean "count"?',
        f'{own}: meters."a b".time_zone: is not the full name of a time zone; write it like "Europe/Berlin", or "UTC"',
        "environment STRIPE_SECRET_KEY: is not a Stripe secret key",
    ):
        assert line in done.stderr
    assert "pk_test_example" not in done.stderr


def test_the_file_to_validate_is_the_argument_then_the_one_that_would_be_read(own: Path, tmp_path: Path) -> None:
    assert meterctl("config", "validate").stdout.startswith("no file, shipped defaults: valid")
    assert meterctl("config", "validate", METERCTL_CONFIG=str(own)).stdout.startswith(f"{own}: valid")
    assert meterctl("-c", own, "config", "validate").stdout == f"{own}: valid; enabled meters: a b, seats\n"
    assert meterctl("-c", own, "config", "validate", tmp_path / "none.toml").code == 78


# show


def test_what_is_shown_is_a_file_of_the_same_meaning(own: Path, tmp_path: Path) -> None:
    shown = meterctl("-c", own, "config", "show", **SECRETS)
    assert (shown.code, shown.stderr) == (0, "")
    again = tmp_path / "again.toml"
    again.write_text(shown.stdout, encoding="utf-8")
    assert sections(again) == sections(own)


def test_each_value_says_where_it_came_from(own: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk_live_example", encoding="utf-8")
    key_file.chmod(0o600)
    shown = meterctl(
        *("-c", own, "config", "show", "--live", "--json"),
        STRIPE_SECRET_KEY_FILE=str(key_file),
        STRIPE_METER_EVENT_NAME="other",
        PGHOST="/run/postgresql",
    )
    found = {one["key"]: (one["value"], one["source"]) for one in json.loads(shown.stdout)["settings"]}
    assert found["stripe.mode"] == ("live", "command line")
    assert found["stripe.invoice_grace_h"] == (24, str(own))
    assert found["stripe.account"] == (None, "default")
    assert found["stripe.api_key"] == ("set", f"environment STRIPE_SECRET_KEY_FILE: {key_file}")
    assert found["stripe.webhook_secrets"] == ("not set", "environment STRIPE_WEBHOOK_SECRET")
    assert found["database_url"] == ("not set", "environment PGHOST")
    assert found['meters."a b".payload'] == ({"region": 'Region "Code"', "k.2": "k"}, str(own))
    assert found['meters."a b".since'] == ("2026-11-30T23:00:00Z", str(own))
    assert found['meters."a b".identifier'] == ("a b-{id}", "default")
    assert found["meters.seats.step"] == ("15m", str(own))
    assert found["meters.seats.event_name"] == ("seats", "default")
    document = json.loads(shown.stdout)
    assert (document["schema"], document["file"]) == ("meterctl.config_show/1", str(own))
    assert "STRIPE_METER_EVENT_NAME" in shown.stderr, "a variable that changes nothing is told"
    renamed = meterctl("config", "show", STRIPE_METER_EVENT_NAME="other").stdout
    assert re.search(r'^event_name = "other" +# environment STRIPE_METER_EVENT_NAME$', renamed, re.MULTILINE)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_secret_is_shown(own: Path, options: list[str]) -> None:
    shown = meterctl("-c", own, "config", "show", *options, **SECRETS)
    assert shown.code == 0
    for secret in ("hunter2", "hunter3", "sk_test_example", "whsec_example"):
        assert secret not in shown.stdout + shown.stderr


def test_an_unsound_configuration_is_not_shown(own: Path) -> None:
    own.write_text(OWN.replace("Shop.Plan", ""), encoding="utf-8")
    done = meterctl("-c", own, "config", "show")
    assert (done.code, done.stdout) == (78, "")
