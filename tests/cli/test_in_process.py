"""The command's frame without a child process: what time it says, and how errors become one line and a code."""

import json

import pytest
from freezegun import freeze_time

from cli.conftest import Shell
from meterctl.__main__ import main
from meterctl.errors import ExitCode


@pytest.fixture
def at_home(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    return shell


def test_the_document_says_when_the_run_began_and_ended(at_home: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    at_home.usage(1)
    with freeze_time("2026-11-21T02:00:00Z"):
        assert main(["report-usage", "--dry-run", "--json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["started_at"], document["finished_at"]) == ("2026-11-21T02:00:00Z", "2026-11-21T02:00:00Z")


def test_an_error_is_a_line_a_hint_and_a_code(at_home: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert at_home.stripe
    assert main(["report-usage", "--max-duration", "soon"]) == ExitCode.USAGE
    assert capsys.readouterr().err == ("meterctl: 'soon' is no duration\nhint: write it like 90s, 15m, 3h or 2d\n")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == "meterctl 0.1.0\n"
