"""The wire under the SDK: urllib3 with every option spelled out, half the CPU of `requests` for a call.

One call of the SDK is one request: nothing is sent twice, no redirect is followed, no password comes from ~/.netrc.
"""

import ssl
from collections.abc import Mapping
from typing import Any, Never
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import stripe
import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxySchemeUnknown
from urllib3.util import make_headers

from meterctl.errors import ConfigurationError
from meterctl.settings.stripe_address import is_loopback
from meterctl.stripe_api.deadline import Deadlines, watched

NEVER_CONNECTED = (NewConnectionError, ConnectTimeoutError)
"""Causes that prove that no byte of a request left: no address (DNS), no connection, no connection in time.

urllib3 raises them in one place, while it opens the TCP connection, and wraps them in ProxyError where that is a
proxy's. What fails later, TLS included, is of another class: some other machine may have answered by then.
"""


CALL_MAX_FACTOR = 2.0
"""A whole call may take so many read time-outs: an answer that comes byte by byte never meets one."""


class Urllib3Client(stripe.HTTPClient):
    """`http_client` for the SDK. One may be shared by many threads; `connections_max` are kept open between calls.

    Raises stripe.APIConnectionError where no whole answer arrived; its `__cause__` says why (`NEVER_CONNECTED`).
    """

    name = "urllib3"

    def __init__(self, base: str, *, connections_max: int, connect_timeout_s: float, read_timeout_s: float) -> None:
        super().__init__()
        self._deadlines = Deadlines(CALL_MAX_FACTOR * read_timeout_s)
        self._connections = _connections(
            base,
            maxsize=connections_max,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
            retries=False,  # also: a redirect is handed back as the answer it is
        )

    def request(  # type: ignore[override]  # as the SDK's own clients: bytes, and no `_usage`
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: str | bytes | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Make one request; return body, status and headers of its answer."""
        try:
            with self._deadlines.call():
                answer = self._connections.urlopen(method.upper(), url, body=post_data, headers=headers, redirect=False)
        except Exception as error:  # noqa: BLE001 -- the SDK's contract: whatever kept an answer from us is this
            _unanswered(error)
        return answer.data, answer.status, answer.headers

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._connections.clear()


def _unanswered(error: Exception) -> Never:
    message = f"No answer from Stripe ({type(error).__name__}: {error})"
    raise stripe.APIConnectionError(message) from error  # type: ignore[no-untyped-call]  # the SDK does not annotate it


def _connections(base: str, **options: Any) -> urllib3.PoolManager:  # noqa: ANN401 -- urllib3's own options
    """Return connections to `base`, through the proxy that the environment names for it."""
    proxy = _proxy(base)
    if urlsplit(base).scheme == "https":
        # Made once: urllib3 would read the bundle again for every connection.
        options["ssl_context"] = ssl.create_default_context(cafile=stripe.ca_bundle_path)
    if proxy is None:
        return watched(urllib3.PoolManager(**options))
    try:
        return watched(urllib3.ProxyManager(proxy, proxy_headers=_proxy_headers(proxy), **options))
    except ProxySchemeUnknown as error:
        raise ConfigurationError(
            "HTTPS_PROXY names a kind of proxy that is not supported",
            hint="write it like http://proxy.example:3128, or add Stripe's host to NO_PROXY",
        ) from error


def _proxy(base: str) -> str | None:
    """Return the proxy for the address, with its scheme. This machine's own addresses never have one."""
    parts = urlsplit(base)
    if is_loopback(parts.hostname) or proxy_bypass(parts.netloc):
        return None
    named = getproxies_environment()
    proxy = named.get(parts.scheme) or named.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _proxy_headers(proxy: str) -> Mapping[str, str] | None:
    """Return what proves us to the proxy, where its URL holds name and password."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return None
    return make_headers(proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}")
