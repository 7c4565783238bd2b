"""Secrets: where they may be kept, what form they have, and that no message ever shows one."""

from pathlib import Path

import pytest

from meterctl.errors import ConfigurationError
from meterctl.settings import Settings, known_secrets, load_settings

NOWHERE = Path("/nowhere/config.toml")
SECRET = "hunter2"  # noqa: S105 -- fake
URL = f"postgresql://meterctl:{SECRET}@db.internal/billing"
DATABASE = {"DATABASE_URL": URL}


def load(**environ: str) -> Settings:
    return load_settings(config_file=None, environ={**DATABASE, **environ}, flags={}, system_file=NOWHERE)


def problems_of(**environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load(**environ)
    assert SECRET not in str(caught.value.problems)
    return caught.value.problems


def secret_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


def test_a_secret_may_stand_in_a_file_whose_last_line_break_does_not_count(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "key", "sk_test_example\r\n")
    settings = load(STRIPE_SECRET_KEY_FILE=path)
    assert settings.stripe.api_key is not None
    assert settings.stripe.api_key.get_secret_value() == "sk_test_example"
    assert settings.where("stripe.api_key") == f"environment STRIPE_SECRET_KEY_FILE: {path}"
    assert settings.warnings == ()


def test_systemd_credentials_are_found_under_the_lower_case_name(tmp_path: Path) -> None:
    secret_file(tmp_path / "database_url", f"{URL}\n", 0o400)
    secret_file(tmp_path / "stripe_secret_key", "rk_test_example", 0o400)
    secret_file(tmp_path / "stripe_webhook_secret", "whsec_example", 0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    settings = load_settings(config_file=None, environ=environ, flags={}, system_file=NOWHERE)
    assert settings.database_url.get_secret_value() == URL
    assert settings.where("database_url") == f"systemd credential {tmp_path}/database_url"
    assert settings.secrets == ("rk_test_example", "whsec_example", SECRET)


def test_the_environment_wins_over_a_credential_and_says_so(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "stripe_secret_key", "sk_test_other")
    settings = load(CREDENTIALS_DIRECTORY=str(tmp_path), STRIPE_SECRET_KEY="sk_test_example")  # noqa: S106 -- fake
    assert settings.secrets[0] == "sk_test_example"
    assert settings.warnings == (
        f"environment STRIPE_SECRET_KEY: is used; the systemd credential {path} is not, remove one",
    )


@pytest.mark.parametrize("name", ["DATABASE_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"])
def test_a_secret_given_twice_is_an_error_that_names_both(tmp_path: Path, name: str) -> None:
    path = secret_file(tmp_path / "secret", SECRET)
    (problem,) = problems_of(**{name: SECRET, f"{name}_FILE": path})
    assert problem == f"environment {name}: is set, and so is {name}_FILE; keep one of the two"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff\xfe", "is not text"),
        (b"x" * 70_000, "is too long"),
    ],
)
def test_a_secret_file_at_fault_is_named_with_its_path(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    (problem,) = problems_of(STRIPE_SECRET_KEY_FILE=str(path))
    assert problem.startswith(f"environment STRIPE_SECRET_KEY_FILE: {path}: {what}; ")


def test_a_missing_database_file_is_not_also_reported_as_no_database(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config_file=None, environ={"DATABASE_URL_FILE": str(path)}, flags={}, system_file=NOWHERE)
    assert caught.value.problems == (
        f"environment DATABASE_URL_FILE: {path}: no such file; name a file that holds the secret alone",
    )


def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    (problem,) = problems_of(STRIPE_SECRET_KEY_FILE=str(tmp_path))
    assert problem.startswith(f"environment STRIPE_SECRET_KEY_FILE: {tmp_path}: cannot be read (is a directory); ")


def test_a_key_file_that_everybody_may_read_is_a_warning(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "key", "sk_test_example", 0o644)
    assert load(STRIPE_SECRET_KEY_FILE=path).warnings == (
        f"environment STRIPE_SECRET_KEY_FILE: {path}: can be read by everybody on this machine; chmod 600 it",
    )


PREFIXES = "sk_test_, rk_test_, sk_live_ or rk_live_"


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"pk_test_{SECRET}", f"it begins with pk_test_, not {PREFIXES}; copy it from Stripe's Dashboard"),
        (f"whsec_{SECRET}", f"it begins with whsec_, not {PREFIXES}; copy it from Stripe's Dashboard"),
        (SECRET, f"it does not begin with {PREFIXES}; copy it from Stripe's Dashboard"),
        (f"sk_{SECRET}_x", f"it does not begin with {PREFIXES}; copy it from Stripe's Dashboard"),
        ("sk_test_", "nothing follows sk_test_; copy it in full"),
        (f"sk_test_{SECRET} x", "it has a space or another character that none has; copy it again"),
        (f"sk_test_{SECRET}ü", "it has a space or another character that none has; copy it again"),
        (f'"sk_test_{SECRET}"', "it has quotes or spaces around it; remove them"),
        (f" sk_test_{SECRET}", "it has quotes or spaces around it; remove them"),
    ],
)
def test_a_key_of_another_form_is_refused_without_showing_it(key: str, what: str) -> None:
    assert problems_of(STRIPE_SECRET_KEY=key) == (f"environment STRIPE_SECRET_KEY: is not a Stripe secret key: {what}",)


def test_several_webhook_secrets_may_be_given_while_one_replaces_another() -> None:
    settings = load(STRIPE_WEBHOOK_SECRET="whsec_new, whsec_old\nwhsec_older")  # noqa: S106 -- fake
    assert [secret.get_secret_value() for secret in settings.stripe.webhook_secrets] == [
        "whsec_new",
        "whsec_old",
        "whsec_older",
    ]


@pytest.mark.parametrize("given", [SECRET, f"whsec_a {SECRET}", f"sk_test_{SECRET}", "whsec_"])
def test_a_webhook_secret_of_another_form_is_refused_without_showing_it(given: str) -> None:
    (problem,) = problems_of(STRIPE_WEBHOOK_SECRET=given)
    assert problem.startswith("environment STRIPE_WEBHOOK_SECRET: is not a webhook signing secret: ")


def test_a_secret_that_is_set_to_nothing_is_not_set() -> None:
    settings = load(STRIPE_SECRET_KEY="", STRIPE_WEBHOOK_SECRET="", STRIPE_SECRET_KEY_FILE="")
    assert settings.stripe.api_key is None
    assert settings.stripe.webhook_secrets == ()


def test_settings_never_show_a_secret() -> None:
    settings = load(STRIPE_SECRET_KEY=f"sk_test_{SECRET}", STRIPE_WEBHOOK_SECRET=f"whsec_{SECRET}", PGPASSWORD=SECRET)
    for shown in (repr(settings), str(settings), repr(settings.stripe), settings.stripe.model_dump_json()):
        assert SECRET not in shown
    assert settings.secrets == (f"sk_test_{SECRET}", SECRET, f"whsec_{SECRET}", SECRET)


def test_secrets_of_the_environment_are_known_before_settings_are_sound() -> None:
    environ = {"DATABASE_URL": "mysql://u:one@h", "STRIPE_SECRET_KEY": "two", "PGPASSWORD": "three", "OTHER": "x"}
    assert {"one", "two", "three"} <= set(known_secrets(environ))


LOOPBACK = ["http://127.0.0.1:12111", "http://127.8.9.1", "https://localhost:8443/", "http://[::1]:9"]


@pytest.mark.parametrize("address", LOOPBACK)
def test_a_local_stripe_may_be_used_with_a_test_key(address: str) -> None:
    settings = load(
        STRIPE_SECRET_KEY="sk_test_example",  # noqa: S106 -- fake
        METERCTL_STRIPE_API_BASE=address,
        METERCTL_STRIPE_METER_EVENTS_BASE=address,
    )
    assert settings.stripe.api_base == settings.stripe.meter_events_base == address.rstrip("/")
    assert settings.where("stripe.api_base") == "environment METERCTL_STRIPE_API_BASE"


@pytest.mark.parametrize("variable", ["METERCTL_STRIPE_API_BASE", "METERCTL_STRIPE_METER_EVENTS_BASE"])
@pytest.mark.parametrize("key", ["sk_live_x", "rk_live_x"])
def test_a_live_key_is_never_shown_to_a_local_stripe(variable: str, key: str) -> None:
    (problem,) = problems_of(**{variable: LOOPBACK[0], "STRIPE_SECRET_KEY": key})
    assert problem == (
        f"environment {variable}: names a local Stripe while the key is a live one; remove it, or use a test-mode key"
    )


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("https://stripe.example", "is not on this machine"),
        ("http://10.0.0.1", "is not on this machine"),
        ("http://0.0.0.0:1", "is not on this machine"),
        ("http://127.0.0.1.example", "is not on this machine"),
        ("http://localhost.example", "is not on this machine"),
        ("http://127.1", "is not on this machine"),
        ("http://", "is not on this machine"),
        ("ftp://127.0.0.1", "does not begin with http:// or https://"),
        ("127.0.0.1:12111", "does not begin with http:// or https://"),
        (f"http://u:{SECRET}@127.0.0.1", "holds more than scheme, host and port"),
        ("http://127.0.0.1@stripe.example", "holds more than scheme, host and port"),
        ("http://127.0.0.1/v1", "holds more than scheme, host and port"),
        ("http://127.0.0.1?x", "holds more than scheme, host and port"),
        ("http://stripe.example\\@127.0.0.1", "is not an address"),
        ("http://127.0.0.1:port", "is not an address"),
        ("http://[::1", "is not an address"),
        ("http://127.0.0.1 ", "is not an address"),
    ],
)
def test_no_other_stripe_than_stripe_and_a_local_one(address: str, what: str) -> None:
    (problem,) = problems_of(METERCTL_STRIPE_API_BASE=address)
    assert problem.startswith(f"environment METERCTL_STRIPE_API_BASE: {what}")
    assert "127.0.0.1:12111" in problem
