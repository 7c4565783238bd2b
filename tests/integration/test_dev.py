"""`./dev` sets itself up with nothing but Python and pip, once, whatever interrupts it.

These run the real file with the real pip in a small checkout, whose lock names one wheel made here: no index is asked.
"""

import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
VERBS = ("demo", "test", "check", "bench", "meterctl", "lock")

MAIN = """
import os, signal, sys
import pretend
if sys.argv[1:2] == ["die"]:
    os.kill(os.getpid(), signal.SIGTERM)
print(pretend.NAME, os.getcwd(), *sys.argv[1:])
sys.exit(7)
"""


def has_pip() -> bool:
    commands = ([sys.executable, "-m", "pip", "--version"], ["pip3", "--version"], ["pip", "--version"])
    return any(
        shutil.which(command[0]) and subprocess.run(command, check=False).returncode == 0 for command in commands
    )


needs_pip = pytest.mark.skipif(not has_pip(), reason="this machine has no pip any more")


def make_wheel(directory: Path, version: str) -> str:
    """Write a wheel `pretend` of one module; return its line for a lock."""
    name = f"pretend-{version}"
    files = {
        "pretend.py": f"NAME = 'pretend {version}'\n",
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: pretend\nVersion: {version}\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}," for path, digest in digests.items()
    ]
    files[f"{name}.dist-info/RECORD"] = "\n".join([*rows, f"{name}.dist-info/RECORD,,", ""])
    wheel = directory / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"pretend=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with our `dev`, in a folder whose name has blanks."""
    root = tmp_path / "a check out"
    (root / "src" / "meterctl").mkdir(parents=True)
    (root / "src" / "meterctl" / "__init__.py").touch()
    (root / "src" / "meterctl" / "__main__.py").write_text(MAIN)
    wheels(root).mkdir()
    (root / "requirements.lock").write_text(make_wheel(wheels(root), "1.0"))
    shutil.copy2(ROOT / "dev", root / "dev")
    return root


def wheels(root: Path) -> Path:
    """Where pip finds wheels. Outside the checkout: pip splits PIP_FIND_LINKS at blanks."""
    return root.parent / "wheels"


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels(root))}


def dev(
    root: Path, *arguments: str, python: str = sys.executable, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [python, str(root / "dev"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=root.parent,
        env=environment(root) | variables,
    )


def test_without_a_verb_it_helps() -> None:
    answer = subprocess.run([ROOT / "dev"], check=False, capture_output=True, text=True)
    assert answer.returncode == 0
    assert answer.stderr == ""
    for verb in VERBS:
        assert f"\n  {verb} " in answer.stdout


def test_an_unknown_verb_is_refused_without_setting_up(checkout: Path) -> None:
    answer = dev(checkout, "dmeo")
    assert answer.returncode == 2
    assert "'dmeo'" in answer.stderr
    assert not (checkout / ".venv").exists()


def test_benchmarks_are_listed_and_misspelt_ones_named(checkout: Path) -> None:
    (checkout / "benchmarks").mkdir()
    (checkout / "benchmarks" / "speed.py").touch()
    assert dev(checkout, "bench").stdout == "speed\n"
    answer = dev(checkout, "bench", "spede")
    assert answer.returncode == 2
    assert "there are: speed" in answer.stderr


@needs_pip
def test_first_use_sets_up_and_later_uses_do_not(checkout: Path) -> None:
    first = dev(checkout, "meterctl", "a b", "--c")
    assert first.stdout == f"pretend 1.0 {checkout.parent} a b --c\n", first.stderr
    assert first.returncode == 7
    assert "setting up" in first.stderr
    made = (checkout / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
    second = dev(checkout, "meterctl")
    assert (second.returncode, second.stderr) == (7, "")
    assert (checkout / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made


@needs_pip
def test_the_command_of_the_environment_works_by_itself(checkout: Path) -> None:
    dev(checkout, "meterctl")
    command = subprocess.run(
        [checkout / ".venv" / "bin" / "meterctl", "x y"], check=False, capture_output=True, text=True, cwd="/"
    )
    assert (command.returncode, command.stdout) == (7, "pretend 1.0 / x y\n")


@needs_pip
def test_signals_pass_through(checkout: Path) -> None:
    assert dev(checkout, "meterctl", "die").returncode == -signal.SIGTERM


@needs_pip
def test_a_new_lock_sets_up_again(checkout: Path) -> None:
    dev(checkout, "meterctl")
    (checkout / "requirements.lock").write_text(make_wheel(wheels(checkout), "2.0"))
    assert dev(checkout, "meterctl").stdout.startswith("pretend 2.0 ")


@needs_pip
def test_a_moved_checkout_sets_up_again(checkout: Path) -> None:
    dev(checkout, "meterctl")
    moved = checkout.rename(checkout.with_name("moved"))
    assert dev(moved, "meterctl").stdout.startswith("pretend 1.0 ")


@needs_pip
def test_half_an_environment_is_made_anew(checkout: Path) -> None:
    """What an interrupted set-up leaves: folders, perhaps a Python, never a stamp."""
    leftover = checkout / ".venv" / "lib" / "leftover"
    leftover.mkdir(parents=True)
    assert dev(checkout, "meterctl").returncode == 7
    assert not leftover.exists()


@needs_pip
@pytest.mark.parametrize(
    "kill", [pytest.param(os.kill, marks=pytest.mark.long, id="alone"), pytest.param(os.killpg, id="with its pip")]
)
def test_a_killed_set_up_is_done_again(checkout: Path, kill: Callable[[int, int], None]) -> None:
    """Where only `dev` is killed, its pip still writes: the next one waits for that."""
    with subprocess.Popen(
        [sys.executable, str(checkout / "dev"), "meterctl"],
        env=environment(checkout),
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as setting_up:
        assert setting_up.stderr is not None
        assert "setting up" in setting_up.stderr.readline()
        python = checkout / ".venv" / "bin" / "python"
        while not python.exists():
            time.sleep(0.005)
        time.sleep(0.1)
        kill(setting_up.pid, signal.SIGKILL)
    again = dev(checkout, "meterctl")
    assert (again.returncode, again.stdout[:11]) == (7, "pretend 1.0"), again.stderr


@needs_pip
def test_of_two_at_once_one_sets_up(checkout: Path) -> None:
    command = [sys.executable, str(checkout / "dev"), "meterctl"]
    both = [subprocess.Popen(command, env=environment(checkout), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [7, 7], said
    assert sum("setting up" in words for words in said) == 1


@needs_pip
def test_a_wheel_that_does_not_match_its_hash_is_refused(checkout: Path) -> None:
    lock = checkout / "requirements.lock"
    lock.write_text(re.sub("sha256:....", "sha256:0000", lock.read_text()))
    answer = dev(checkout, "meterctl")
    assert answer.returncode == 1
    assert "could not install requirements.lock" in answer.stderr


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python without a pip of its own."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    return str(tmp_path / "bare" / "bin" / "python")


def test_without_pip_it_names_the_packages(checkout: Path, bare_python: str) -> None:
    answer = dev(checkout, "test", python=bare_python, PATH="/nowhere")
    assert answer.returncode == 1
    assert "python3-pip" in answer.stderr
    assert "there is none" in answer.stderr


def test_an_old_pip_is_named(checkout: Path, bare_python: str, tmp_path: Path) -> None:
    for name in ("pip", "pip3"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'pip 20.3.4 from /usr/lib/python3/dist-packages/pip (python 3.9)'\n"
        )
        (tmp_path / name).chmod(0o755)
    answer = dev(checkout, "test", python=bare_python, PATH=str(tmp_path))
    assert answer.returncode == 1
    assert "pip3 is 20.3" in answer.stderr


@needs_pip
def test_a_pip_program_serves_where_python_has_no_pip_module(checkout: Path, bare_python: str, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    with_pip = next((shutil.which(name) for name in ("pip3", "pip") if shutil.which(name)), None)
    if with_pip is None:
        pytest.skip("pip is here as a module only")
    (programs / "pip").write_text(f'#!/bin/sh\nPATH="{os.environ["PATH"]}" exec "{with_pip}" "$@"\n')
    (programs / "pip").chmod(0o755)
    answer = dev(checkout, "meterctl", python=bare_python, PATH=f"{programs}:/nowhere")
    assert answer.returncode == 7, answer.stderr


# The lock itself


def test_the_lock_has_a_hash_for_everything_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash=sha256:", ""), re.MULTILINE), "an option such as an index"
    for requirement in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9-]+==\S+ ", requirement), requirement
        assert "--hash=sha256:" in requirement


def test_the_lock_holds_all_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["sandbox"],
        *project["dependency-groups"]["dev"],
    ]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE))
    assert {re.split(r"[^A-Za-z0-9_-]", name)[0].lower().replace("_", "-") for name in named} <= locked
