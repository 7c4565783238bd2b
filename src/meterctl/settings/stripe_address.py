"""Where Stripe is: its own addresses, or a local stand-in on this machine that only test-mode keys are shown to."""

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

_PRINTABLE = re.compile(r"[!-~]+")
_REMEDY = "write it like http://127.0.0.1:12111, or remove it to use Stripe itself"


def local_address(text: str, *, key_mode: Literal["test", "live"] | None) -> str:
    """Given the address of a local Stripe, return it without a closing slash.

    Raises ValueError, which never shows the address: anything but loopback would be shown the key and the usage, and
    a live key has no business with a stand-in.
    """
    if not _PRINTABLE.fullmatch(text) or "\\" in text:
        raise ValueError(f"is not an address: it holds a space or another character that none has; {_REMEDY}")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"is not an address; {_REMEDY}") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"does not begin with http:// or https://; {_REMEDY}")
    if "@" in parts.netloc or parts.path not in {"", "/"} or "?" in text or "#" in text:
        raise ValueError(f"holds more than scheme, host and port; {_REMEDY}")
    if not is_loopback(host):
        raise ValueError(f"is not on this machine, and only a local Stripe may be named here; {_REMEDY}")
    if key_mode == "live":
        raise ValueError("names a local Stripe while the key is a live one; remove it, or use a test-mode key")
    return text.rstrip("/")


def is_loopback(host: str | None) -> bool:
    """Whether a host, as it stands in a URL, is this machine: 127.0.0.0/8, ::1 or localhost."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback and "%" not in host
    except ValueError:
        return False
