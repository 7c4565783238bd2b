"""Secrets planted everywhere they may come from appear in nothing the program emits, tracebacks included."""

from pathlib import Path

import pytest

from cli.conftest import Finished, Shell

KEY = "sk_test_planted0key"
PASSWORD = "pla%40nted-pass"  # noqa: S105 -- the secret under test
DECODED = "pla@nted-pass"
WEBHOOK = "whsec_planted0hook"
PLANTED = (KEY, PASSWORD, DECODED, WEBHOOK)


def everything(done: Finished, shell: Shell) -> str:
    rows = shell.sql("SELECT e::text FROM meterctl.meter_events AS e UNION ALL SELECT r::text FROM meterctl.runs AS r")
    return done.stdout + done.stderr + "".join(row[0] for row in rows)


def url_with_password(shell: Shell) -> str:
    """The socket needs no password, so PostgreSQL ignores the one in the URL."""
    return shell.database_url.replace("postgres@", f"postgres:{PASSWORD}@", 1)


@pytest.fixture
def planted(shell: Shell, tmp_path: Path) -> Shell:
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o644)
    shell.extra = {
        "DATABASE_URL": url_with_password(shell),
        "STRIPE_SECRET_KEY": "",
        "STRIPE_SECRET_KEY_FILE": str(key_file),
        "STRIPE_WEBHOOK_SECRET": WEBHOOK,
        "STRIPE_LOG": "debug",
    }
    return shell


@pytest.mark.parametrize(
    "arguments",
    [
        ("report-usage", "-v"),
        ("report-usage", "-v", "--json"),
        ("report-usage", "-v", "--live"),
        ("report-usage", "--dry-run"),
        ("summary", "--json"),
        ("runs",),
        ("db", "check"),
        ("ledger", "list", "--json"),
    ],
)
def test_no_command_shows_a_secret(planted: Shell, arguments: tuple[str, ...]) -> None:
    planted.usage(3, customers=3, known=False)
    emitted = everything(planted.run(*arguments), planted)
    assert not [secret for secret in PLANTED if secret in emitted]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}@127.0.0.1:1/app",
        f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1/app",
        f"postgresql://user:{PASSWORD}@127.0.0.1/app?pgbouncer=true",
        f"postgresql://user:{PASSWORD}%zz@127.0.0.1/app",
        f"host=127.0.0.1 port=1 user=user password={DECODED}",
        f"user password={DECODED}",
    ],
)
def test_a_wrong_database_url_is_explained_without_its_password(planted: Shell, url: str) -> None:
    planted.extra["DATABASE_URL"] = url
    done = planted.run("report-usage", "-v")
    assert done.code in {69, 78}
    assert "Traceback" not in done.stderr
    assert not [secret for secret in PLANTED if secret in done.stdout + done.stderr]


def test_a_bug_is_told_without_secrets_or_locals(planted: Shell, tmp_path: Path) -> None:
    """A crash with every secret in its message and its locals: exit 1, a traceback, no secret."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def broken(*args, **kwargs):\n"
        "    secret = open(os.environ['STRIPE_SECRET_KEY_FILE']).read()\n"
        "    hook = os.environ['STRIPE_WEBHOOK_SECRET']\n"
        "    raise RuntimeError('planted ' + secret + os.environ['DATABASE_URL'] + hook)\n"
        "import meterctl.postgres.migrate as m\n"
        "m.require_schema = broken\n"
    )
    planted.extra["PYTHONPATH"] = str(tmp_path)
    done = planted.run("report-usage")
    assert done.code == 1
    assert "RuntimeError" in done.stderr
    assert "Traceback" in done.stderr
    assert not [secret for secret in PLANTED if secret in done.stdout + done.stderr]
