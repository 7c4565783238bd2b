"""What the documents promise is what the code says."""

import re
from pathlib import Path

import pytest

from documented import Invocation, code_spans, commands, commands_in, documents, headings, options, toml_blocks
from meterctl.errors import ExitCode
from meterctl.settings import load_settings
from meterctl.settings.load import VARIABLES
from meterctl.settings.meters import METER_KINDS
from meterctl.settings.model import LookupSettings, StripeSettings
from meterctl.settings.secrets import SECRET_VARIABLES
from reference import PAGE, PARTS, written

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
CRONTAB = (ROOT / "deploy" / "crontab").read_text(encoding="utf-8")

INVOCATIONS = [pytest.param(found, id=found.where) for path in documents(ROOT) for found in commands_in(path)]
PAGES = [pytest.param(path, id=path.name) for path in documents(ROOT) if path.suffix == ".md"]


def test_the_readme_lists_every_exit_code_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in ExitCode]


def test_troubleshooting_has_a_remedy_for_every_exit_code() -> None:
    rows = OPERATING.partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
    told = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", rows, re.MULTILINE) for code in cell.split(",")}
    assert told == {int(code) for code in ExitCode} - {0}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of this repository, and to a heading of it where one is named."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, fragment = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not fragment or fragment in headings(target))):
            broken.append(link)
    assert broken == []


def test_the_readmes_two_commands_exist() -> None:
    verbs = (ROOT / "dev").read_text(encoding="utf-8")
    for command in re.findall(r"\./dev (\w+)", README):
        assert f'"{command}"' in verbs, command


# Commands and options


@pytest.mark.parametrize("found", INVOCATIONS)
def test_a_command_that_is_named_exists_with_its_options(found: Invocation) -> None:
    assert found.fault() is None


@pytest.mark.parametrize("page", PAGES)
def test_an_option_that_is_named_alone_belongs_to_some_command(page: Path) -> None:
    named = {span.split()[0].partition("=")[0] for span in code_spans(page) if re.match(r"-[-a-z]", span)}
    assert named - options() == set()


def test_every_command_is_described() -> None:
    """A command nobody reads of is not there for whoever needs it at night."""
    spans = [span for page in documents(ROOT) if page.suffix == ".md" for span in code_spans(page)]
    lines = [line for page in documents(ROOT) for line in page.read_text(encoding="utf-8").splitlines()]
    missing = [
        name
        for name in commands()
        if not any(re.match(rf"(meterctl )?{name}\b", span) for span in spans)
        and not any(f"meterctl {name}" in line for line in lines)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("$ meterctl report --recent 2d -q", None),
        ("$ meterctl recount", "no command recount"),
        ("$ meterctl db mend", "no command mend"),
        ("$ meterctl report --reason why", "no option --reason"),
        ("# runuser -u x -- env A=b /opt/meterctl/bin/meterctl summary --age 3h", "no option --age"),
        ("see `meterctl ledger retry --all`", "no option --all"),
        ("see `settle --assume 1`", "no option --assume"),
        ("see `db adopt --cut-over`", None),
    ],
)
def test_what_does_not_exist_is_found(text: str, fault: str | None, tmp_path: Path) -> None:
    """Else the two tests above would show nothing."""
    page = tmp_path / "page.md"
    page.write_text(f"```console\n{text}\n```\n" if text.startswith(("$", "#")) else text, encoding="utf-8")
    (found,) = commands_in(page)
    assert found.fault() == fault


# Settings


@pytest.mark.parametrize(("page", "text"), [(page, text) for page in documents(ROOT) for text in toml_blocks(page)])
def test_a_configuration_that_is_shown_loads(page: Path, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"{page.stem}.toml"
    file.write_text(text, encoding="utf-8")
    settings = load_settings(config_file=file, environ={}, flags={}, require_database=False)
    assert (bool(settings.enabled_meters), settings.warnings) == (True, ())


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    keys = set(re.findall(r"`stripe\.([a-z_]+)`", text))
    assert keys - StripeSettings.model_fields.keys() == set()
    named = {name for name in re.findall(r"\bMETERCTL_[A-Z_]+\b", text) if not name.startswith("METERCTL_TEST_")}
    assert named - set(VARIABLES) == set()


def test_the_table_of_meter_keys_names_keys_of_a_meter() -> None:
    page = (ROOT / "docs" / "stripe-setup.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `[a-z_.]+` \| (.+?) \| `", page, re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`([a-z_]+)`", row)}
    assert keys
    assert keys <= METER_KINDS["rows"].model_fields.keys() | LookupSettings.model_fields.keys()


# What must not drift apart


def test_the_configuration_reference_is_what_the_schema_says() -> None:
    """`./dev docs` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"made by \./dev docs: (\w+)", text)) == set(PARTS)
    assert written(text) == text


def test_every_variable_is_in_the_configuration_reference() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (*VARIABLES, *SECRET_VARIABLES, "STRIPE_METER_EVENT_NAME"):
        assert f"| `{name}` | " in text, name


def test_the_cron_lines_that_are_shown_are_those_that_are_shipped() -> None:
    shown = re.findall(r"^\S+ +\S+ +\* +\* +\* +meterctl .+$", OPERATING, re.MULTILINE)
    shipped = re.findall(r"^\S+ +\S+ +\* +\* +\* +meterctl .+$", CRONTAB, re.MULTILINE)
    assert shown == shipped
    assert len(shown) == 4


def test_the_section_that_an_error_message_sends_people_to_is_there() -> None:
    """`stripe_api/asking.py`: a restricted key without a permission; each call that it needs is listed there."""
    section = README.partition("\n## Set up Stripe\n")[2].partition("\n## ")[0]
    for call in ("/v1/billing/meter_events", "/v1/account", "/v1/billing/meters", "/event_summaries"):
        assert call in section
