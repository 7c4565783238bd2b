"""What the documents promise is what the code says."""

import re
from pathlib import Path

from meterctl.errors import ExitCode

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_exit_code_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in ExitCode]


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
        assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readmes_two_commands_exist() -> None:
    verbs = (ROOT / "dev").read_text(encoding="utf-8")
    for command in re.findall(r"\./dev (\w+)", README):
        assert f'"{command}"' in verbs, command
