"""`webhooks verify` as whoever has a stored request runs it: no database, and not a word of a secret."""

import hmac
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from cli.conftest import Finished
from meterctl.__main__ import main

SECRET, OLD = "whsec_planted0hook", "whsec_planted0old"
T = 1_795_226_400
AT = "2026-11-21T02:00:00Z"
BODY = '{"id": "evt_1", "object": "event", "type": "invoice.paid", "note": "ü"}\n'.encode()
THIN = b'{"id": "evt_2", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found"}'


def signed(body: bytes = BODY, secret: str = SECRET, t: int = T) -> str:
    return f"t={t},v1=" + hmac.new(secret.encode(), b"%d.%s" % (t, body), "sha256").hexdigest()


def verify(
    *arguments: object, body: bytes = b"", stdin: IO[bytes] | None = None, secrets: str | None = SECRET
) -> Finished:
    """Run the command; whatever it says, it must not hold a secret."""
    command = [sys.executable, "-m", "meterctl", "webhooks", "verify", *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    environment |= {"STRIPE_WEBHOOK_SECRET": secrets} if secrets else {}
    with subprocess.Popen(
        command, env=environment, stdin=stdin or subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        stdout, stderr = child.communicate(None if stdin else body, timeout=60)
    assert b"planted0" not in stdout + stderr
    return Finished(child.returncode, stdout.decode(), stderr.decode())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "body.json"
    path.write_bytes(BODY)
    return path


def secret_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_a_file_is_verified_and_its_event_named(file: Path) -> None:
    done = verify(file, "--signature", signed(), "--at", "2026-11-21T02:00:12Z")
    assert done == Finished(0, "evt_1 invoice.paid, signed 12s ago\n", "")


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_stdin_is_verified_to_its_last_byte(arguments: tuple[str, ...]) -> None:
    thin = verify(*arguments, "--signature", signed(THIN), "--at", "2026-11-21T01:57:00Z", body=THIN)
    assert thin == Finished(0, "evt_2 v1.billing.meter.no_meter_found, signed 3m ahead\n", "")
    more = verify(*arguments, "--signature", signed(THIN), "--at", AT, body=THIN + b"\n")
    assert (more.code, more.stdout) == (65, "")
    assert more.stderr.startswith("meterctl: no v1 signature matches the secret\nhint: verify the body byte for byte")


def test_a_megabyte_passes() -> None:
    body = b'{"id": "evt_1", "object": "event", "type": "x", "data": "' + b"a" * 1_000_000 + b'"}'
    assert verify("--signature", signed(body), "--at", AT, body=body).code == 0


def test_without_an_instant_the_signature_must_be_recent(file: Path) -> None:
    ahead = signed(t=int(time.time()) + 400)
    assert verify(file, "--signature", ahead, "--tolerance", 500).code == 0
    refused = verify(file, "--signature", ahead)
    assert (refused.code, " s in the future, more than the 300 s allowed" in refused.stderr) == (65, True)


def test_the_document_of_a_genuine_event(file: Path) -> None:
    done = verify(file, "--signature", signed(), "--at", "2026-11-21T02:00:12Z", "--json")
    assert done.document == {
        "schema": "meterctl.webhooks_verify/1",
        "exit_code": 0,
        "id": "evt_1",
        "type": "invoice.paid",
        "object": "event",
        "signed_at": AT,
        "age_s": 12,
        "refused": None,
    }
    assert (done.code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("header", "at", "code"),
    [
        (f"t={T},v1=é", AT, "malformed_header"),
        (f"{SECRET}={SECRET}", AT, "malformed_header"),
        (signed(secret=OLD), AT, "no_match"),
        (signed(), "2026-11-21T02:05:01Z", "too_old"),
        (signed(), "2026-11-21T01:54:59Z", "in_future"),
    ],
)
def test_a_refusal_is_one_document_and_says_nothing_of_what_nobody_vouches_for(
    file: Path, header: str, at: str, code: str
) -> None:
    done = verify(file, "--signature", header, "--at", at, "--json")
    assert (done.code, done.document["exit_code"]) == (65, 65)
    refused = done.document.pop("refused")
    assert refused["code"] == code
    assert done.stderr.startswith(f"meterctl: {refused['message']}\nhint: ")
    assert [done.document[key] for key in ("id", "type", "object", "signed_at", "age_s")] == [None] * 5


def test_a_signed_body_that_is_no_event_is_refused() -> None:
    done = verify("--signature", signed(b"{}"), "--at", AT, "--json", body=b"{}")
    assert (done.code, done.document["refused"]["code"]) == (65, "no_event")
    assert verify("--signature", signed(b""), "--at", AT, body=b"").code == 65


def test_what_an_event_says_cannot_steer_a_terminal() -> None:
    body = json.dumps({"id": "evt_\x1b[2J\ud800", "object": "event", "type": "a\nb"}).encode()
    done = verify("--signature", signed(body), "--at", AT, body=body)
    assert (done.code, done.stdout) == (0, "evt_\\x1b[2J\\ud800 a\\nb, signed 0s ago\n")


def test_while_a_secret_is_replaced_both_verify(file: Path) -> None:
    both = f"{SECRET} {OLD}"
    for secret in (SECRET, OLD):
        assert verify(file, "--signature", signed(secret=secret), "--at", AT, secrets=both).code == 0


def test_files_of_secrets_stand_in_for_the_environments(file: Path, tmp_path: Path) -> None:
    old = secret_file(tmp_path / "old", f"{OLD}\n")
    other = secret_file(tmp_path / "other", "whsec_planted0a,whsec_planted0b\n")
    given = ("--secret-file", other, "--secret-file", old, "--at", AT)
    done = verify(file, "--signature", signed(secret=OLD), *given, secrets=None)
    assert (done.code, done.stderr) == (0, "")
    refused = verify(file, "--signature", signed(secret=SECRET), *given)
    assert (refused.code, "any of the 3 secrets" in refused.stderr) == (65, True)


def test_a_file_of_secrets_that_everybody_can_read_is_used_and_warned_of(file: Path, tmp_path: Path) -> None:
    path = secret_file(tmp_path / "old", OLD, 0o644)
    done = verify(file, "--signature", signed(secret=OLD), "--secret-file", path, "--at", AT)
    assert (done.code, f"--secret-file {path}: can be read by everybody" in done.stderr) == (0, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("sk_test_planted0key", "begins with sk_test_"),
        ("whsec_", "nothing follows whsec_"),
    ],
)
def test_a_faulty_file_of_secrets_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    path = tmp_path / "secret" if text is None else secret_file(tmp_path / "secret", text)
    assert main(["webhooks", "verify", "--signature", signed(), "--secret-file", str(path)]) == 78
    stdout, stderr = capsys.readouterr()
    assert re.search(rf"--secret-file {re.escape(str(path))}: .*{told}", stderr)
    assert (stdout, "planted0" in stderr) == ("", False)


def test_a_secret_in_the_place_of_its_file_is_not_repeated(file: Path) -> None:
    assert verify(file, "--signature", signed(), "--secret-file", SECRET).code == 78
    assert verify(SECRET, "--signature", signed()).code == 2


def test_without_a_secret_nothing_is_verified(file: Path) -> None:
    done = verify(file, "--signature", signed(), "--at", AT, secrets=None)
    assert (done.code, done.stdout) == (78, "")
    assert "STRIPE_WEBHOOK_SECRET" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("/nowhere/body", "--signature", "t=1"),
        ("/", "--signature", "t=1"),
        ("--signature", "t=1", "--tolerance", "0"),
        ("--signature", "t=1", "--tolerance", "9" * 30),
        ("--signature", "t=1", "--at", "yesterday"),
    ],
)
def test_a_wrong_command_line_is_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)
    assert main(["webhooks", "verify", *arguments]) == 2
    assert capsys.readouterr().out == ""


def test_a_stdin_that_gives_nothing_is_told(tmp_path: Path) -> None:
    """Cron and systemd start a command with all kinds of them."""
    closed = ["/bin/sh", "-c", f'exec "$0" -m meterctl webhooks verify --signature "{signed(b"")}" --at {AT} <&-']
    environment = {"PATH": os.environ["PATH"], "STRIPE_WEBHOOK_SECRET": SECRET}
    done = subprocess.run([*closed, sys.executable], env=environment, capture_output=True, check=False, timeout=60)
    assert (done.returncode, b"the body is empty" in done.stderr) == (65, True)
    with (tmp_path / "written").open("wb") as write_only:
        unreadable = verify("--signature", signed(), stdin=write_only)
    assert (unreadable.code, unreadable.stderr.startswith("meterctl: stdin cannot be read: ")) == (2, True)
