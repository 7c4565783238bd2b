"""`./dev test` with METERCTL_TEST_PG_BINS: the suite once with each PostgreSQL, and green only if it is with all.

The checkout is a small one whose pytest tells what it was given; the servers are programs that tell a version.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.test_dev import ROOT, dev, environment, has_pip, make_wheel, wheels

PYTEST = """
import os, pathlib, signal, sys, time
server = os.environ.get("METERCTL_PG_BIN", "its own")
print("tested with", server, *sys.argv[1:], os.environ.get("METERCTL_TESTS_REQUIRE_POSTGRES", "may skip"), flush=True)
if "wait" in sys.argv:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1)  # longer than subprocess.run would give it
        print("put in order", flush=True)
sys.exit(1 if server.endswith("bad") else 0)
"""

pytestmark = pytest.mark.skipif(not has_pip(), reason="this machine has no pip any more")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with our `dev`, and a pytest of its own where `python -m` looks first."""
    for name in ("METERCTL_PG_BIN", "METERCTL_TESTS_REQUIRE_POSTGRES"):  # our own run may have been given them
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    (root / "src").mkdir(parents=True)
    wheels(root).mkdir()
    (root / "requirements.lock").write_text(make_wheel(wheels(root), "1.0"))
    (root / "pytest.py").write_text(PYTEST)
    shutil.copy2(ROOT / "dev", root / "dev")
    return root


def server(directory: Path, words: str) -> Path:
    """A directory with a program `postgres` that says these words."""
    directory.mkdir()
    program = directory / "postgres"
    program.write_text(f"#!/bin/sh\necho '{words}'\n")
    program.chmod(0o755)
    return directory


def test_each_server_named_is_tested_with_and_told(checkout: Path, tmp_path: Path) -> None:
    first = server(tmp_path / "14", "postgres (PostgreSQL) 14.23")
    second = server(tmp_path / "15", "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)")
    answer = dev(checkout, "test", "a.py", METERCTL_TEST_PG_BINS=f"{first}:{second}")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [f"tested with {first} a.py 1", f"tested with {second} a.py 1"]
    for version, directory in (("14.23", first), ("15.18", second)):
        assert f"dev: testing with PostgreSQL {version} in {directory}\n" in answer.stderr
        assert f"dev: PostgreSQL {version} in {directory}: passed\n" in answer.stderr


@pytest.mark.long
@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_failure_with_one_server_fails_all_and_hides_no_other(
    checkout: Path, tmp_path: Path, order: tuple[str, str]
) -> None:
    named = ":".join(str(server(tmp_path / name, "postgres (PostgreSQL) 15.1")) for name in order)
    answer = dev(checkout, "test", METERCTL_TEST_PG_BINS=named)
    assert answer.returncode == 1
    assert answer.stdout.count("tested with") == 2
    assert "bad: failed (pytest: 1)" in answer.stderr
    assert "good: passed" in answer.stderr


@pytest.mark.long
def test_a_directory_is_named_from_where_the_caller_stands(checkout: Path, tmp_path: Path) -> None:
    server(tmp_path / "here", "postgres (PostgreSQL) 15.1")  # `dev` is called in tmp_path and works in the checkout
    assert f"tested with {tmp_path}/here" in dev(checkout, "test", METERCTL_TEST_PG_BINS="here").stdout


@pytest.mark.long
@pytest.mark.parametrize("named", ["", ":"])
def test_without_any_the_tests_choose_their_server(checkout: Path, named: str) -> None:
    answer = dev(checkout, "test", "a.py", METERCTL_TEST_PG_BINS=named)
    assert (answer.returncode, answer.stdout) == (0, "tested with its own a.py may skip\n")


def test_a_server_that_is_not_there_is_told_before_the_first_test(checkout: Path, tmp_path: Path) -> None:
    there = server(tmp_path / "there", "postgres (PostgreSQL) 15.1")
    answer = dev(checkout, "test", METERCTL_TEST_PG_BINS=f"{there}:{tmp_path}/gone")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"METERCTL_TEST_PG_BINS: {tmp_path}/gone/postgres: No such file" in answer.stderr


def test_a_program_without_a_version_is_refused(checkout: Path, tmp_path: Path) -> None:
    odd = server(tmp_path / "odd", "hello")
    answer = dev(checkout, "test", METERCTL_TEST_PG_BINS=str(odd))
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"{odd}/postgres does not tell its version" in answer.stderr


def test_an_interrupt_lets_the_tests_put_things_in_order_and_ends_all(checkout: Path, tmp_path: Path) -> None:
    named = ":".join(str(server(tmp_path / name, "postgres (PostgreSQL) 15.1")) for name in ("one", "two"))
    dev(checkout, "test")
    with subprocess.Popen(
        [sys.executable, str(checkout / "dev"), "test", "wait"],
        env=environment(checkout) | {"METERCTL_TEST_PG_BINS": named},
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as testing:
        assert testing.stdout is not None
        assert "one" in testing.stdout.readline()
        time.sleep(0.2)  # until it sleeps
        os.killpg(testing.pid, signal.SIGINT)  # as a terminal does
        assert testing.stdout.read() == "put in order\n"
    assert testing.returncode == 130


@pytest.mark.long
def test_the_real_suite_names_its_server() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "tests/cli/test_in_process.py"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert re.search(r"^PostgreSQL: \d+\.\d+ in /", answer.stdout, re.MULTILINE), answer.stdout
