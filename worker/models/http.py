"""GET requests to the hub, and to where it redirects; a fault that may pass is `Passing`.

The token goes to the hub's own address alone, in a header: redirects lead to other hosts' signed addresses,
and are followed here, one by one. Knows no repository and no file.
"""

import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from worker.errors import BadInput, UserError
from worker.store.files import CHUNK_BYTES

CONNECT_S, READ_S = 10.0, 30.0
_CONNECTIONS = 8  # kept open to one host
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)
_LONGEST_PAUSE_S = 600.0
_USER_AGENT = "musicgen-batch-worker"
_PORTS = {"http": 80, "https": 443}


class Passing(Exception):
    """A fault that may pass. `pause_s`: how long the hub asks to wait. `answered`: it was the hub's."""

    def __init__(self, what: str, pause_s: float | None = None, *, answered: bool = True) -> None:
        super().__init__(what)
        self.what, self.pause_s, self.answered = what, pause_s, answered


class Patience:
    """How often something is tried again: until a number of tries in a row have brought nothing.

    patience = Patience(lambda fault: (1.0, 2.0, 4.0), wait)
    ...
    except Passing as fault:
        patience.after(fault)      # waits, or raises the fault again
    patience.reset()               # it brought something
    """

    def __init__(
        self, pauses_s: Callable[[Passing], tuple[float, ...]], wait: Callable[[float], None]
    ) -> None:
        self._pauses_s, self._wait, self._tries = pauses_s, wait, 0

    def after(self, fault: Passing) -> None:
        pauses_s = self._pauses_s(fault)
        if self._tries >= len(pauses_s) or (fault.pause_s or 0) > _LONGEST_PAUSE_S:
            raise fault
        self._wait(pauses_s[self._tries] if fault.pause_s is None else fault.pause_s)
        self._tries += 1

    def reset(self) -> None:
        self._tries = 0


class Http:
    """Requests with one token to one address. Raises BadInput for an address or token that cannot be one."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._home = _origin(_checked(self.endpoint, token))
        self._token = token
        self._pools: dict[str, urllib3.PoolManager] = {}

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer, its body unread, after redirects. Raises Passing: no connection, 408, 429, 5xx."""
        for _ in range(_REDIRECTS + 1):
            answer = self._once(url, headers or {})
            try:
                if answer.status not in _REDIRECTED:
                    if answer.status in (408, 429) or answer.status >= 500:
                        raise Passing(f"it answers {answer.status}", _retry_after(answer.headers))
                    if answer.status >= 400 and _origin(urlsplit(url)) != self._home:
                        # A signed address runs out; the hub gives another.
                        raise Passing(f"the address that it redirects to answers {answer.status}")
                    yield answer
                    return
                target = urljoin(url, answer.headers.get("Location", ""))
            finally:
                answer.close()
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise UserError("the hub redirects to an unencrypted address; check HF_ENDPOINT")
            url = target
        raise UserError(f"the hub redirects more than {_REDIRECTS} times; check HF_ENDPOINT")

    def _once(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        if self._token and _origin(parts) == self._home:
            sent["Authorization"] = f"Bearer {self._token}"
        with _explained():
            return self._pool(parts).request(
                "GET",
                url,
                headers=sent,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
                retries=False,
                redirect=False,
                preload_content=False,
            )

    def _pool(self, url: SplitResult) -> urllib3.PoolManager:
        """Connections through the proxy that the system has for this address, or none."""
        host = url.hostname or ""
        proxy = urllib.request.getproxies().get(url.scheme, "")
        if _is_here(host) or urllib.request.proxy_bypass(host):
            proxy = ""
        if proxy not in self._pools:
            self._pools[proxy] = (
                urllib3.ProxyManager(proxy, maxsize=_CONNECTIONS)
                if proxy
                else urllib3.PoolManager(maxsize=_CONNECTIONS)
            )
        return self._pools[proxy]


def blocks(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body as it comes. Raises Passing when it breaks off."""
    while True:
        with _explained():
            block = answer.read1(CHUNK_BYTES, decode_content=False)
        if not block:
            return
        yield block


@contextmanager
def _explained() -> Iterator[None]:
    """Raise urllib3's errors in the block as Passing. Their texts name addresses, so none is shown."""
    reasons: list[tuple[type[HTTPError], str]] = [
        (NewConnectionError, "no connection"),  # a subclass of the next
        (ConnectTimeoutError, f"no connection within {CONNECT_S:g} s"),
        (ReadTimeoutError, f"nothing came within {READ_S:g} s"),
        (SSLError, "its certificate is not accepted, or the encryption failed"),
        (ProxyError, "the proxy refuses"),
    ]
    try:
        yield
    except HTTPError as error:
        what = next((text for kind, text in reasons if isinstance(error, kind)), "the connection broke off")
        unanswered = isinstance(error, NewConnectionError | ConnectTimeoutError | SSLError | ProxyError)
        raise Passing(what, answered=not unanswered) from None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; None if no header names them. The hub's own is `RateLimit: "resolvers";r=0;t=123`."""
    if found := re.search(r";\s*t=(\d+)", headers.get("RateLimit", "")):
        return float(found[1])
    text = headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


def _checked(endpoint: str, token: str | None) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname if parts.port != 0 else None  # reading a port that is none raises
    except ValueError:
        host = None
    if not host or parts.scheme not in _PORTS or parts.query or parts.username:
        raise BadInput("HF_ENDPOINT is not an address; write it like https://huggingface.co, or remove it")
    if token and parts.scheme == "http" and not _is_here(host):
        raise BadInput("HF_ENDPOINT would send HF_TOKEN unencrypted; write https://, or remove HF_TOKEN")
    return parts


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    return url.scheme, url.hostname or "", url.port or _PORTS.get(url.scheme)


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
