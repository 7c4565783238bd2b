"""Secrets: from the environment, from a file that it names, or from systemd. Never from a flag or the configuration.

A systemd credential is a file in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), "Credentials"), named like the variable in
lower case.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from meterctl.settings.problems import CREDENTIAL, ENVIRONMENT, Findings

SECRET_VARIABLES = ("DATABASE_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET")
"""Each is also read from `NAME_FILE` and from the systemd credential `name`."""

SECRET_BYTES_MAX = 65_536
"""No secret is longer: whoever names a bigger file named the wrong one."""

_KEY = re.compile(r"(?:sk|rk)_(?:test|live)_[!-~]+")
_KEY_PREFIX = re.compile(r"(?:sk|rk|pk)_(?:test|live)_|whsec_")
_WEBHOOK_SECRET = re.compile(r"whsec_[!-~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Secret:
    """A secret, and where messages say it came from."""

    value: SecretStr
    source: str

    @property
    def text(self) -> str:
        """The secret itself."""
        return self.value.get_secret_value()


def read_secret(findings: Findings, name: str, environ: Mapping[str, str]) -> Secret | None:
    """Given a variable's name, return its secret from wherever it is kept; None where it is not, or is at fault."""
    plain, file = environ.get(name), environ.get(f"{name}_FILE")
    credential = _credential(name, environ)
    if plain and file:
        findings.problem(f"{ENVIRONMENT}{name}", f"is set, and so is {name}_FILE; keep one of the two")
        return None
    if credential and (plain or file):
        given = name if plain else f"{name}_FILE"
        findings.warning(f"{ENVIRONMENT}{given}", f"is used; the systemd credential {credential} is not, remove one")
    if plain:
        return Secret(value=SecretStr(plain), source=f"{ENVIRONMENT}{name}")
    if file:
        return _from_file(findings, f"{ENVIRONMENT}{name}_FILE: {file}", Path(file))
    return _from_file(findings, f"{CREDENTIAL}{credential}", credential) if credential else None


def _credential(name: str, environ: Mapping[str, str]) -> Path | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / name.lower() if directory else None
    return path if path and os.path.lexists(path) else None


def _from_file(findings: Findings, where: str, path: Path) -> Secret | None:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(SECRET_BYTES_MAX + 1)
        text = content.decode().rstrip("\r\n")
    except (OSError, ValueError) as error:
        findings.problem(where, f"{_unreadable(error)}; name a file that holds the secret alone")
        return None
    if not text.strip() or len(content) > SECRET_BYTES_MAX:
        findings.problem(where, f"{'is too long' if text.strip() else 'is empty'}; it must hold the secret alone")
        return None
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        findings.warning(where, "can be read by everybody on this machine; chmod 600 it")
    return Secret(value=SecretStr(text), source=where)


def _unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"cannot be read ({(error.strerror or type(error).__name__).lower()})"
    return "is not text"


def checked_key(findings: Findings, secret: Secret | None) -> SecretStr | None:
    """Return Stripe's key if it has the form of one: `sk_` or `rk_`, `test_` or `live_`, and more without a space."""
    if secret is None:
        return None
    if _KEY.fullmatch(secret.text):
        return secret.value
    findings.problem(
        secret.source, _misshapen(secret.text, "a Stripe secret key", "sk_test_, rk_test_, sk_live_ or rk_live_")
    )
    return None


def webhook_secrets_in(findings: Findings, files: Iterable[Path]) -> tuple[SecretStr, ...]:
    """Return the signing secrets of all files that `--secret-file` names."""
    read = (_from_file(findings, f"--secret-file {path}", path) for path in files)
    return tuple(text for secret in read for text in checked_webhook_secrets(findings, secret))


def checked_webhook_secrets(findings: Findings, secret: Secret | None) -> tuple[SecretStr, ...]:
    """Return the signing secrets: several while one replaces another, separated by spaces, lines or commas."""
    if secret is None:
        return ()
    texts = [text for text in re.split(r"[\s,]+", secret.text) if text]
    faults = [text for text in texts if not _WEBHOOK_SECRET.fullmatch(text)]
    if faults or not texts:
        findings.problem(secret.source, _misshapen("".join(faults[:1]), "a webhook signing secret", "whsec_"))
        return ()
    return tuple(SecretStr(text) for text in texts)


def _misshapen(text: str, wanted: str, prefixes: str) -> str:
    """Say what is wrong with a secret and show at most its prefix, if that is one of Stripe's."""
    prefix = _KEY_PREFIX.match(text)
    if text != text.strip("\"' \t\r\n"):
        return f"is not {wanted}: it has quotes or spaces around it; remove them"
    if prefix and prefix[0] == text:
        return f"is not {wanted}: nothing follows {prefix[0]}; copy it in full"
    if prefix and prefix[0] in prefixes:
        return f"is not {wanted}: it has a space or another character that none has; copy it again"
    begins = f"it begins with {prefix[0]}, not {prefixes}" if prefix else f"it does not begin with {prefixes}"
    return f"is not {wanted}: {begins}; copy it from Stripe's Dashboard"
