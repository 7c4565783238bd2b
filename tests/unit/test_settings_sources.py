"""Where settings come from, which source wins, and what messages call it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meterctl.errors import ConfigurationError
from meterctl.settings import GaugeMeter, RowsMeter, Settings, StripeSettings, load_settings, shipped_text

DATABASE = {"DATABASE_URL": "postgresql://meterctl:hunter2@db.internal/billing"}
OWN_METER = """
[meters.api_calls]
source = "rows"
formula = "count"
table = "billing.calls"
occurred_at = "at"
payers = [{ lookup = "organization", column = "org" }]
"""


class Place:
    """A directory with configuration files, and a machine without /etc/meterctl unless `system` is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.system = directory / "etc.toml"

    def file(self, text: str, name: str = "config.toml") -> Path:
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return path

    def load(self, file: Path | None = None, environ: dict[str, str] | None = None, **flags: Any) -> Settings:
        return load_settings(
            config_file=file,
            environ=DATABASE if environ is None else environ,
            flags={key.replace("__", "."): value for key, value in flags.items()},
            system_file=self.system,
        )

    def problems(self, file: Path | None = None, environ: dict[str, str] | None = None) -> tuple[str, ...]:
        with pytest.raises(ConfigurationError) as caught:
            self.load(file, environ)
        assert caught.value.exit_code == 78
        return caught.value.problems


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_environment_alone_suffices_for_the_shipped_tables(place: Place) -> None:
    settings = place.load(environ={**DATABASE, "STRIPE_SECRET_KEY": "sk_test_example"})
    meter = settings.meters["ai_suggestion"]
    assert isinstance(meter, RowsMeter)
    assert (meter.event_name, meter.table, meter.value) == ("ai_suggestion", "usage_events", "quantity")
    assert meter.identifier == "{workspace_id}-{user_id}-{id}"
    assert list(settings.enabled_meters) == ["ai_suggestion"]
    assert settings.lookups["individual"].id == "id"
    assert settings.warnings == ()


def test_the_shipped_text_is_what_is_loaded(place: Place) -> None:
    assert place.load(place.file(shipped_text())).meters == place.load().meters


def test_precedence_is_flag_then_environment_then_file_then_default(place: Place) -> None:
    file = place.file('[stripe]\nmode = "test"\ninvoice_grace_h = 24\n')
    settings = place.load(file, stripe__mode="live")
    assert settings.stripe.mode == "live"
    assert settings.where("stripe.mode") == "command line: stripe.mode"
    assert settings.stripe.invoice_grace_h == 24
    assert settings.where("stripe.invoice_grace_h") == f"{file}: stripe.invoice_grace_h"
    assert place.load().stripe.invoice_grace_h == 1
    assert place.load().where("stripe.invoice_grace_h") == "shipped defaults: stripe.invoice_grace_h"


def test_the_file_is_c_then_meterctl_config_then_the_system_file(place: Place) -> None:
    place.system.write_text("[stripe]\ninvoice_grace_h = 3\n")
    named = place.file("[stripe]\ninvoice_grace_h = 2\n", "named.toml")
    given = place.file("[stripe]\ninvoice_grace_h = 4\n", "given.toml")
    environ = {**DATABASE, "METERCTL_CONFIG": str(named)}
    assert place.load(given, environ).stripe.invoice_grace_h == 4
    assert place.load(None, environ).stripe.invoice_grace_h == 2
    assert place.load().stripe.invoice_grace_h == 3
    assert place.load(environ={**DATABASE, "METERCTL_CONFIG": ""}).stripe.invoice_grace_h == 3


def test_meters_of_a_file_replace_the_shipped_ones_and_lookups_stay(place: Place) -> None:
    file = place.file(OWN_METER)
    settings = place.load(file)
    assert list(settings.meters) == ["api_calls"]
    assert settings.meters["api_calls"].table_parts == ("billing", "calls")
    assert list(settings.lookups) == ["individual", "organization"]
    assert settings.where("meters.api_calls.table") == f"{file}: meters.api_calls.table"
    assert settings.where("meters.api_calls.payers[0].column") == f"{file}: meters.api_calls.payers[0].column"
    assert settings.where("lookups.individual.table") == "shipped defaults: lookups.individual.table"


def test_lookups_of_a_file_replace_the_shipped_ones(place: Place) -> None:
    file = place.file('[lookups.individual]\ntable = "t"\nsubject = "s"\ncustomer = "c"\n')
    missing = "there is no [lookups.organization]; known: individual"
    assert place.problems(file) == (
        f"shipped defaults: meters.ai_suggestion.payers[1].lookup: {missing}",
        f"shipped defaults: meters.active_sensors.payers[0].lookup: {missing}",
        f"shipped defaults: meters.temperature_readings.payers[0].lookup: {missing}",
    )


def test_stripe_meter_event_name_renames_the_shipped_meter(place: Place) -> None:
    settings = place.load(environ={**DATABASE, "STRIPE_METER_EVENT_NAME": "ai_credit"})
    assert list(settings.meters) == ["ai_suggestion", "active_sensors", "temperature_readings"]
    assert settings.meters["ai_suggestion"].event_name == "ai_credit"
    assert settings.where("meters.ai_suggestion.event_name") == "environment STRIPE_METER_EVENT_NAME"
    assert settings.where("meters.ai_suggestion.table") == "shipped defaults: meters.ai_suggestion.table"


def test_stripe_meter_event_name_that_changes_nothing_is_a_warning(place: Place) -> None:
    environ = {**DATABASE, "STRIPE_METER_EVENT_NAME": "ai_credit"}
    absent = place.load(place.file(OWN_METER), environ)
    assert absent.warnings == (
        "environment STRIPE_METER_EVENT_NAME: changes nothing: there is no [meters.ai_suggestion]; remove it",
    )
    file = place.file(OWN_METER.replace("api_calls]", 'ai_suggestion]\nevent_name = "mine"'))
    named = place.load(file, environ)
    assert named.meters["ai_suggestion"].event_name == "mine"
    assert f"{file}: meters.ai_suggestion.event_name names the event" in named.warnings[0]


def test_keys_with_dots_and_spaces_are_quoted_as_toml_writes_them(place: Place) -> None:
    file = place.file(OWN_METER.replace("meters.api_calls", 'meters."api calls.v2"').replace('"at"', '""'))
    assert place.problems(file) == (f'{file}: meters."api calls.v2".occurred_at: is empty; name a column',)


def test_an_unknown_variable_of_ours_is_a_warning_with_a_suggestion(place: Place) -> None:
    environ = {**DATABASE, "METERCTL_CONFG": "secret", "METERCTL_PG_BIN": "/pg", "METERCTL_TEST_SEED": "1"}
    assert place.load(environ=environ).warnings == (
        "environment METERCTL_CONFG: is not a variable of meterctl; did you mean `METERCTL_CONFIG`?",
    )


@pytest.mark.parametrize("variable", ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"])
def test_libpqs_own_variables_can_name_the_database(place: Place, variable: str) -> None:
    settings = place.load(environ={variable: "x"})
    assert settings.database_url.get_secret_value() == ""
    assert settings.where("database_url") == f"environment {variable}"


def test_no_database_at_all_is_an_error_unless_the_command_needs_none(place: Place) -> None:
    (problem,) = place.problems(environ={"DATABASE_URL": ""})
    assert problem.startswith("environment DATABASE_URL: is not set; set it to postgresql://USER@HOST:PORT/")
    settings = load_settings(config_file=None, environ={}, flags={}, system_file=place.system, require_database=False)
    assert settings.database_url.get_secret_value() == ""


def test_a_gauge_has_its_step_and_defaults(place: Place) -> None:
    meter = place.load().meters["active_sensors"]
    assert isinstance(meter, GaugeMeter)
    assert meter.step.total_seconds() == 3600
    assert (meter.enabled, meter.formula, meter.where) == (False, "last", "is_active")


def test_settings_are_frozen(place: Place) -> None:
    settings = place.load()
    with pytest.raises(AttributeError):
        settings.warnings = ()  # type: ignore[misc]  # the point of the test
    with pytest.raises(TypeError):
        settings.meters["x"] = settings.meters["ai_suggestion"]  # type: ignore[index]  # the point of the test
    with pytest.raises(ValueError, match="frozen"):
        settings.stripe.mode = "live"


@pytest.mark.parametrize(
    ("key", "mode"),
    [("sk_test_example", "test"), ("rk_test_example", "test"), ("sk_live_x", "live"), ("rk_live_x", "live")],
)
def test_the_key_tells_its_mode(place: Place, key: str, mode: str) -> None:
    assert place.load(environ={**DATABASE, "STRIPE_SECRET_KEY": key}).stripe.key_mode == mode
    assert StripeSettings().key_mode is None


def test_every_setting_has_a_description() -> None:
    from meterctl.settings.meters import METER_KINDS  # noqa: PLC0415 -- only this test looks inside
    from meterctl.settings.model import LookupSettings, PayerSettings  # noqa: PLC0415 -- same

    for kind in (StripeSettings, LookupSettings, PayerSettings, *METER_KINDS.values()):
        assert all(field.description for field in kind.model_fields.values()), kind


def test_settings_load_without_the_libraries_that_do_the_work() -> None:
    """`config validate` and the start of every command stay quick."""
    program = (
        "import sys, meterctl.settings as s; from pathlib import Path;"
        "s.load_settings(config_file=None, environ={'PGHOST': 'h'}, flags={}, system_file=Path('/nowhere/x.toml'));"
        "print([name for name in ('psycopg', 'stripe', 'rich', 'structlog') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
