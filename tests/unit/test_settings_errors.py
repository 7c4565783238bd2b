"""Everything that is wrong is said at once: file, key, what, and what to do."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from meterctl.errors import ConfigurationError
from meterctl.settings import Settings, load_settings
from meterctl.settings.webhooks import WebhookSettings

DATABASE = {"DATABASE_URL": "postgresql://meterctl@db.internal/billing"}
METER = """
[meters.calls]
source = "rows"
formula = "sum"
value = "quantity"
table = "calls"
occurred_at = "at"
payers = [{ lookup = "organization", column = "org" }]
"""


def load(path: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    path.write_text(text, encoding="utf-8")
    return load_settings(config_file=path, environ=environ or DATABASE, flags={})


def problems_of(path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """Return the problems without the file's name, which each must begin with unless it names a variable."""
    with pytest.raises(ConfigurationError) as caught:
        load(path, text, environ)
    for problem in caught.value.problems:
        assert problem.startswith((f"{path}: ", "environment "))
        assert "\n" not in problem
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


WRONG = {
    "unknown key of [stripe]": ('[stripe]\nmod = "live"', "stripe.mod: is not a key; did you mean `mode`?"),
    "unknown key of a lookup": (
        '[lookups.organization]\ntable = "t"\nsubject = "s"\ncustomr = "c"\ncustomer = "c"' + METER,
        "lookups.organization.customr: is not a key; did you mean `customer`?",
    ),
    "unknown table": ("[meter.calls]\na = 1", "meter: is not a key; did you mean `meters`?"),
    "far from everything": ("zzz = 1", "zzz: is not a key; known: lookups, meters, stripe"),
    "wrong case": ('[stripe]\nMODE = "live"', "stripe.MODE: is not a key; did you mean `mode`?"),
    "text for a number": (
        '[stripe]\ninvoice_grace_h = "1"',
        "stripe.invoice_grace_h: must be a whole number, without quotes, not text",
    ),
    "too large": (
        "[stripe]\ninvoice_grace_h = 73",
        "stripe.invoice_grace_h: must be at most 72; choose another number",
    ),
    "negative": ("[stripe]\ninvoice_grace_h = -1", "stripe.invoice_grace_h: must be at least 0; choose another number"),
    "not a choice": ('[stripe]\nmode = "Live"', 'stripe.mode: must be "test" or "live"; did you mean "live"?'),
    "account": ('[stripe]\naccount = "1234"', "stripe.account: is not an account id"),
    "secret in the file": (
        '[stripe]\napi_key = "sk_test_example"',
        "stripe.api_key: does not belong in a file; set STRIPE_SECRET_KEY in the environment",
    ),
    "database in the file": (
        'database_url = "postgresql://u:hunter2@h/d"',
        "database_url: does not belong in a file; set DATABASE_URL in the environment",
    ),
    "no table": ("stripe = 5", "stripe: must be a table, not a whole number; write [stripe]"),
    "no tables below": ("meters = []", "meters: must be a table, not a list; write [meters.NAME]"),
    "meter without a name": ('[meters]\ntable = "x"', "meters.table: must be a table, not text; write [meters.table]"),
    "empty set": (
        "[meters]",
        "meters: is empty; write a [meters.NAME] table, or leave it out to keep the shipped ones",
    ),
    "no source": ("[meters.a]\nx = 1", "meters.a.source: is missing; known: rows, gauge, counter"),
    "wrong source": ('[meters.a]\nsource = "row"', "meters.a.source: is not one of them; did you mean `rows`?"),
    "source of another type": (
        "[meters.a]\nsource = 1",
        "meters.a.source: is not one of them; known: rows, gauge, counter",
    ),
    "bool in quotes": (
        f'{METER}enabled = "yes"',
        "meters.calls.enabled: must be true or false, without quotes, not text",
    ),
    "list as text": (
        METER.replace('[{ lookup = "organization", column = "org" }]', '"organization"'),
        "meters.calls.payers: must be a list in brackets, not text",
    ),
    "no payers": (
        METER.replace('{ lookup = "organization", column = "org" }', ""),
        "meters.calls.payers: is empty; name at least one { lookup, column }",
    ),
    "unknown key of a payer": (
        METER.replace("column =", "colum ="),
        "meters.calls.payers[0].colum: is not a key; did you mean `column`?",
    ),
    "payer as text": (
        METER.replace('{ lookup = "organization", column = "org" }', '"organization"'),
        "meters.calls.payers[0]: must be a table of keys, not text",
    ),
    "unknown lookup": (
        METER.replace('"organization"', '"organisation"'),
        "meters.calls.payers[0].lookup: there is no [lookups.organisation]; did you mean `organization`?",
    ),
    "unknown key of [webhooks]": ("[webhooks]\nhandel = []", "webhooks.handel: is not a key; did you mean `handle`?"),
    "unknown key of the subscriptions": (
        '[webhooks.subscriptions]\ntable = "t"\nsubscription = "s"\ncustomer = "c"\norganisation = "o"',
        "webhooks.subscriptions.organisation: is not a key; did you mean `organization`?",
    ),
    "missing key of the subscriptions": (
        '[webhooks.subscriptions]\ntable = "t"\ncustomer = "c"',
        "webhooks.subscriptions.subscription: is missing; Column with the Stripe subscription id: a row is known by it",
    ),
    "subscriptions as text": (
        '[webhooks]\nsubscriptions = "t"',
        "webhooks.subscriptions: must be a table of keys, not text",
    ),
    "unknown event": (
        '[webhooks]\nhandle = ["invoice.payment_failed", "customer.subscription.update"]',
        'webhooks.handle[1]: must be "checkout.session.completed", "customer.subscription.created"',
    ),
    "one event as text": (
        '[webhooks]\nhandle = "invoice.payment_failed"',
        "webhooks.handle: must be a list in brackets, not text",
    ),
    "an event twice": (
        '[webhooks]\nhandle = ["invoice.payment_failed", "invoice.payment_failed"]',
        'webhooks.handle: names "invoice.payment_failed" more than once; remove one',
    ),
    "missing key": (
        METER.replace('table = "calls"\n', ""),
        'meters.calls.table: is missing; Table or view with the usage, as "table" or "schema.table"',
    ),
}


def test_an_event_that_is_nearly_right_is_suggested(path: Path) -> None:
    (found,) = problems_of(path, '[webhooks]\nhandle = ["customer.subscription.update"]')
    assert found.endswith('; did you mean "customer.subscription.updated"?')


def test_events_of_subscriptions_need_their_table() -> None:
    """The shipped configuration has one, so that no file can be without."""
    with pytest.raises(ValidationError, match=r"write a .webhooks.subscriptions. table, or leave invoice.payment_fail"):
        WebhookSettings(handle=("invoice.payment_failed",))
    assert WebhookSettings(handle=("v1.billing.meter.no_meter_found",)).kept_table is None


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_named_with_file_key_and_remedy(path: Path, text: str, expected: str) -> None:
    found = problems_of(path, text)
    assert any(problem.startswith(expected) for problem in found), found
    assert "hunter2" not in str(found)
    assert "sk_test_example" not in str(found)


REFUSED_METERS = {
    "rows with last": (
        'formula = "sum"',
        'formula = "last"',
        'formula: a meter with formula "last" bills only the latest',
    ),
    "sum without value": (
        'value = "quantity"\n',
        "",
        'value: is missing; name the column to sum, or use formula = "count"',
    ),
    "count with value": ('"sum"', '"count"', 'value: does not belong to formula "count", which counts rows; remove it'),
    "window": (
        '"at"',
        '"at"\nevent_time_window = "hour"',
        "event_time_window: a meter with an event_time_window keeps",
    ),
    "key of a gauge": ('"at"', '"at"\nstep = "1h"', 'step: belongs to source = "gauge"; remove it'),
    "three-part table": ('"calls"', '"a.b.c"', 'table: is not "table" or "schema.table"; for a name with dots'),
    "quoted table": ('"calls"', "'\"Calls\"'", "table: holds quotation marks; write the bare name"),
    "empty table": ('"calls"', '" "', 'table: is empty; name a table, as "table" or "schema.table"'),
    "empty schema": ('"calls"', '".calls"', 'table: is not "table" or "schema.table"'),
    "empty column": ('"at"', '""', "occurred_at: is empty; name a column"),
    "long column": ('"at"', f'"{"ü" * 32}"', "occurred_at: is longer than the 63 bytes PostgreSQL keeps of a name"),
    "column not text": ('"at"', "5", "occurred_at: must be text in quotes, not a whole number"),
    "brace": ('"at"', '"at"\nidentifier = "{a"', "identifier: a brace without its partner"),
    "constant identifier": ('"at"', '"at"\nidentifier = "x"', "identifier: an identifier template needs at least one"),
    "empty where": ('"at"', '"at"\nwhere = ""', "where: is empty; leave the key out to bill every row"),
    "empty event name": ('"at"', '"at"\nevent_name = ""', "event_name: is empty or begins or ends with a space"),
    "long event name": ('"at"', f'"at"\nevent_name = "{"x" * 101}"', "event_name: is longer than the 100 characters"),
    "same payload keys": (
        '"at"',
        '"at"\nvalue_payload_key = "stripe_customer_id"',
        "value_payload_key: is the same as customer_payload_key",
    ),
    "taken payload key": (
        '"at"',
        '"at"\npayload = { region = "r", value = "v" }',
        'payload: the key "value" is the meter\'s value_payload_key; choose another, or remove it',
    ),
    "payload key with bracket": (
        '"at"',
        '"at"\npayload = { "a[b]" = "c" }',
        'payload: the key "a[b]" holds a bracket, at which Stripe would take it apart; choose another name',
    ),
    "long payload key": (
        '"at"',
        f'"at"\npayload = {{ {"x" * 101} = "c" }}',
        f'payload: the key "{"x" * 101}" is longer',
    ),
    "payload from a number": ('"at"', '"at"\npayload = { a = 5 }', "payload.a: must be text in quotes, not a whole"),
    "payload of columns": ('"at"', '"at"\npayload = ["a"]', "payload: must be a table of keys, not a list"),
    "abbreviated zone": (
        '"at"',
        '"at"\ntime_zone = "CET"',
        'time_zone: is not the full name of a time zone; write it like "Europe/Berlin", or "UTC"',
    ),
    "zone by offset": ('"at"', '"at"\ntime_zone = "UTC+1"', "time_zone: is not the full name of a time zone"),
    "naive since": ('"at"', '"at"\nsince = 2026-12-01T00:00:00', "since: has no time zone; write it like"),
    "naive instant": (
        '"at"',
        '"at"\nadopt_identifiers_until = 2026-12-01T00:00:00',
        "adopt_identifiers_until: has no time zone; write it like 2026-12-01T00:00:00Z",
    ),
    "day": (
        '"at"',
        '"at"\nadopt_identifiers_until = 2026-12-01',
        "adopt_identifiers_until: is not an instant; write it",
    ),
    "words": ('"at"', '"at"\nadopt_identifiers_until = "soon"', "adopt_identifiers_until: is not an instant; write it"),
    "number": (
        '"at"',
        '"at"\nadopt_identifiers_until = 5',
        "adopt_identifiers_until: is not an instant; write it like",
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), REFUSED_METERS.values(), ids=REFUSED_METERS.keys())
def test_a_rows_meter_that_would_lose_or_double_usage_is_refused(path: Path, old: str, new: str, expected: str) -> None:
    assert old in METER
    (problem,) = problems_of(path, METER.replace(old, new, 1))
    assert problem.startswith(f"meters.calls.{expected}")


@pytest.mark.parametrize(
    ("source", "formula", "reason"),
    [
        ("gauge", "sum", 'a level reported every step would be added up; use formula = "last"'),
        ("gauge", "count", "the number of reports would be billed instead of the level"),
        ("counter", "last", 'a meter with formula "last" would bill only the last hour; use formula = "sum"'),
        ("counter", "count", "the number of reports would be billed instead of the volume"),
        ("counter", "summ", 'must be "sum"; did you mean "sum"?'),
    ],
)
def test_source_and_formula_must_suit_each_other(path: Path, source: str, formula: str, reason: str) -> None:
    meter = f'[meters.m]\nsource = "{source}"\nformula = "{formula}"\ntable = "t"\n'
    (problem,) = problems_of(path, f'{meter}payers = [{{ lookup = "organization", column = "org" }}]')
    assert problem.startswith(f"meters.m.formula: {reason}")


@pytest.mark.parametrize("step", ['"7h"', '"0h"', '"1w"', '"90"', "60", '"2d"', '"-1h"'])
def test_a_step_must_divide_a_day(path: Path, step: str) -> None:
    meter = f'[meters.m]\nsource = "gauge"\ntable = "t"\nstep = {step}\n'
    (problem,) = problems_of(path, f'{meter}payers = [{{ lookup = "organization", column = "org" }}]')
    assert problem == 'meters.m.step: is not a step that divides a day; write it like "15m", "1h" or "1d"'


def test_two_enabled_meters_may_not_report_to_one_event_name(path: Path) -> None:
    second = METER.replace("meters.calls", "meters.more").replace('"at"', '"at"\nevent_name = "calls"')
    found = problems_of(path, METER + second)
    assert found[0].startswith('meters.more.event_name: is "calls" as in meters.calls; enable one of them')
    assert load(path, METER + second.replace("[meters.more]", "[meters.more]\nenabled = false"))


def test_two_templates_that_can_give_the_same_identifier_are_refused(path: Path) -> None:
    first = METER.replace('"at"', '"at"\nidentifier = "{workspace}-{id}"')
    second = METER.replace("meters.calls", "meters.more").replace('"calls"', '"more_calls"')
    (problem,) = problems_of(path, first + second)
    assert problem.startswith(
        'meters.more.identifier: "more-{id}" can give the same text as "{workspace}-{id}" of meters.calls'
    )
    assert load(path, METER + second).meters.keys() == {"calls", "more"}


def test_two_meters_that_would_hide_rows_from_each_other_are_refused(path: Path) -> None:
    """Once a row is stamped for one, the other never sees it: units would be lost in silence."""
    second = METER.replace("meters.calls", "meters.more")
    (problem,) = problems_of(path, METER + second)
    assert problem.startswith('meters.more.reported_at: is "stripe_reported_at" of "calls" as in meters.calls')
    parted = METER + "where = \"kind = 'a'\"\n" + second + "where = \"kind = 'b'\"\n"
    assert load(path, parted).meters.keys() == {"calls", "more"}
    assert load(path, METER + second + 'reported_at = "more_reported_at"\n').meters.keys() == {"calls", "more"}


def test_default_identifier_is_the_event_name_and_the_id(path: Path) -> None:
    text = METER.replace('"at"', '"at"\nid = "Call Id"\nevent_name = "api"')
    meter = load(path, text).meters["calls"]
    assert getattr(meter, "identifier", None) == "api-{Call Id}"


def test_everything_wrong_is_said_at_once(path: Path) -> None:
    text = '[stripe]\nmod = "x"\ninvoice_grace_h = "y"\n' + METER.replace('"at"', "5").replace("table =", "tabel =")
    environ = {
        "DATABASE_URL": "postgresql+psycopg://u:hunter2@h/d?pgbouncer=true",
        "STRIPE_SECRET_KEY": "pk_test_hunter2",
        "METERCTL_STRIPE_API_BASE": "https://stripe.example",
    }
    found = problems_of(path, text, environ)
    starts = [problem.split(": ")[0] for problem in found]
    assert sorted(starts) == sorted(
        ["stripe.mod", "stripe.invoice_grace_h", "meters.calls.table", "meters.calls.tabel", "meters.calls.occurred_at"]
        + ["environment DATABASE_URL"] * 2
        + ["environment STRIPE_SECRET_KEY", "environment METERCTL_STRIPE_API_BASE"]
    )
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[stripe]\nmode = live\n", "line 2, column 8: not valid TOML: Invalid value; text stands in quotes"),
        ("[stripe\n", "line 1, column 8: not valid TOML: "),
        ("[stripe]\nmode = 'a", "its end: not valid TOML: "),
        ("[stripe]\na = 1\na = 2\n", "line 3, column 6: not valid TOML: Cannot overwrite a value"),
    ],
)
def test_bad_toml_is_named_with_line_and_column(path: Path, text: str, expected: str) -> None:
    (problem,) = problems_of(path, text)
    assert problem.startswith(expected)


def test_a_file_that_cannot_be_read_is_named_with_whoever_named_it(tmp_path: Path) -> None:
    missing = tmp_path / "absent.toml"
    for file, environ, named_by in ((missing, {}, "-c"), (None, {"METERCTL_CONFIG": str(missing)}, "METERCTL_CONFIG")):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(config_file=file, environ={**DATABASE, **environ}, flags={})
        assert caught.value.problems == (f"{missing}: no such file (named by {named_by}); check the path",)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config_file=tmp_path, environ=DATABASE, flags={})
    assert caught.value.problems == (
        f"{tmp_path}: cannot be read (is a directory); make it a file that this user may read",
    )


def test_a_file_in_another_encoding_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"# \xfc\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config_file=file, environ=DATABASE, flags={})
    assert caught.value.problems == (f"{file}: byte 3 is not UTF-8; save the file as UTF-8",)
    file.write_bytes(b"\xef\xbb\xbf[stripe]\n")
    assert load_settings(config_file=file, environ=DATABASE, flags={})


def test_a_wrong_flag_is_named_as_the_command_line() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config_file=None, environ=DATABASE, flags={"stripe.mode": "liv"}, system_file=Path("/nowhere/c"))
    assert caught.value.problems == ('command line: stripe.mode: must be "test" or "live"; did you mean "live"?',)
    assert str(caught.value) == "the configuration has 1 problem"
