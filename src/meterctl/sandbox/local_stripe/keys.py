"""Who calls: secret and restricted API keys, their mode and what they may do."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from meterctl.sandbox.local_stripe.errors import Refusal, forbidden, unauthorized

TEST_PREFIXES = ("sk_test_", "rk_test_")
LIVE_PREFIXES = ("sk_live_", "rk_live_")

KEY_TEST = "sk_test_example"
KEY_LIVE = "sk_live_example"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """An authenticated key. `allowed` are operation patterns such as `meters.*`; None is everything."""

    key: str
    livemode: bool
    allowed: tuple[str, ...] | None

    def may(self, operation: str) -> bool:
        """Whether the key's permissions cover `operation`."""
        return self.allowed is None or any(fnmatchcase(operation, pattern) for pattern in self.allowed)


class KeyRing:
    """The keys this account knows."""

    def __init__(self) -> None:
        self._allowed: dict[str, tuple[str, ...] | None] = {KEY_TEST: None, KEY_LIVE: None}
        self._revoked: set[str] = set()

    def add(self, key: str, *, allowed: Iterable[str] | None = None) -> None:
        """Register `key`; `allowed` lists the operations it may call (patterns), None is all."""
        if not key.startswith(TEST_PREFIXES + LIVE_PREFIXES):
            raise ValueError("An API key begins with sk_test_, rk_test_, sk_live_ or rk_live_.")
        self._allowed[key] = None if allowed is None else tuple(allowed)
        self._revoked.discard(key)

    def revoke(self, key: str) -> None:
        """Make `key` unknown."""
        self._revoked.add(key)

    def authenticate(self, authorization: str | None, *, accept_any: bool) -> Caller:
        """Given an `Authorization` header (Bearer, or Basic as curl -u sends it), return who calls or raise a 401."""
        key = _key_in(authorization)
        if key is None:
            raise unauthorized("You did not provide an API key. Set it as the Authorization header: 'Bearer YOUR_KEY'.")
        well_formed = key.startswith(TEST_PREFIXES + LIVE_PREFIXES)
        if not well_formed or key in self._revoked or not (accept_any or key in self._allowed):
            raise unauthorized(f"Invalid API Key provided: {redacted(key)}")
        return Caller(key=key, livemode=key.startswith(LIVE_PREFIXES), allowed=self._allowed.get(key))


def _key_in(authorization: str | None) -> str | None:
    scheme, _, rest = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(rest, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        return decoded.partition(":")[0] or None
    return None


def redacted(key: str) -> str:
    """Return `key` as Stripe shows one: its prefix and last four characters."""
    prefix = key[:8] if key.startswith(TEST_PREFIXES + LIVE_PREFIXES) else ""
    return f"{prefix}{'*' * 8}{key[-4:]}" if len(key) > len(prefix) + 4 else f"{prefix}{'*' * 8}"


def not_permitted(caller: Caller, operation: str, account_id: str) -> Refusal:
    """Return the 403 of a restricted key that lacks a permission."""
    return forbidden(
        f"The provided key '{redacted(caller.key)}' does not have the required permissions for this endpoint on "
        f"account '{account_id}'. Having the permission for '{operation}' would allow this request to continue."
    )
