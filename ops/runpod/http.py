"""One request to RunPod's API: the key, time limits, retries, and every fault as an ApiError of one line.

The key goes to RUNPOD_API_URL (ops/runpod/endpoint.py) in a header and nowhere else: no redirect is followed.
Knows no paths and no fields.
"""

import io
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from ops.runpod import endpoint, errors
from ops.runpod.errors import ApiError
from worker.errors import BadInput
from worker.redact import redactor

POLL_S = 5.0  # RunPod limits calls to 60 a minute
CONNECT_S, READ_S = 5.0, 60.0
# What there is of a log comes at once; then the stream stays open for lines to come.
_QUIET_S, _LONGEST_STREAM_S = 3.0, 20.0
_TRIES = 4
_PAUSES_S = (2.0, 4.0, 8.0)
_LONGEST_PAUSE_S = 90.0
# Without one, or with a library's, Cloudflare answers 403 (error 1010).
_USER_AGENT = "musicgen-batch-worker"


@dataclass(frozen=True)
class Clock:
    """How time passes; tests have another one."""

    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic

    def looks(self, limit_s: float, every_s: float = POLL_S) -> Iterator[float]:
        """Once now and then every so often, until the limit is over: for a loop that looks at RunPod.

        Yields the seconds since the first look. The last look is at the limit.
        """
        started = self.monotonic()
        yield 0.0
        while (since := self.monotonic() - started) < limit_s:
            self.sleep(min(every_s, limit_s - since))
            yield self.monotonic() - started


class Http:
    """RunPod at one address, with one key. Raises BadInput for an address or key that cannot be one.

    `hide` takes this key, `secrets`, and what has the form of a key or token out of RunPod's words: a pod may
    print whatever it was given.
    """

    def __init__(self, key: str, url: str, clock: Clock | None = None, secrets: Sequence[str] = ()) -> None:
        self.hide = redactor({}, [key, *secrets])
        self.clock = clock or Clock()
        self.url = endpoint.checked(url)
        # RunPod's clock less this machine's, by the last answer; None before the first one.
        self.clock_ahead_s: float | None = None
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise BadInput(f"RUNPOD_API_KEY has characters that no key has; copy it again ({errors.KEYS})")
        self._headers = {"Authorization": f"Bearer {key}", "User-Agent": _USER_AGENT}
        self._pool = endpoint.pool(self.url)

    def __repr__(self) -> str:
        return f"Http({self.url})"  # not the key

    def json(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        again: bool = True,
    ) -> Any:
        """The answer to a request; None if it has no body. `what`: the action, for messages.

        `again`: it may be asked a second time although RunPod may have done it. A request that RunPod refused
        for the number of calls is asked again in any case.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                return self._once(method, path, what, query, body)
            except _Limited as limited:
                error, pause_s = limited.error, limited.pause_s
            except ApiError as failed:
                if not again or not (failed.status >= 500 or failed.status == errors.NO_ANSWER):
                    raise
                error, pause_s = failed, _PAUSES_S[min(attempt, len(_PAUSES_S)) - 1]
            if attempt == _TRIES or pause_s > _LONGEST_PAUSE_S:
                break
            self.clock.sleep(pause_s)
        raise error

    def _once(self, method: str, path: str, what: str, query: Mapping[str, str] | None, body: Any) -> Any:
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        sent = None if body is None else json.dumps(body).encode()
        answer = self._request(method, path, what, query, headers, sent)
        content_type, content = answer.headers.get("Content-Type", ""), answer.data
        if answer.status == 429:
            error = errors.refused(answer.status, content_type, content, what, self.hide)
            raise _Limited(error, _retry_after(answer.headers))
        if not 200 <= answer.status < 300:
            raise errors.refused(answer.status, content_type, content, what, self.hide)
        if not content:
            return None
        if "html" in content_type.lower():
            raise errors.web_page(answer.status)
        try:
            return json.loads(content)
        except ValueError:
            raise errors.broken("not JSON", what) from None

    def _request(
        self,
        method: str,
        path: str,
        what: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: bytes | None = None,
        stream_s: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        sent = None if body is None else _Body(body)
        # With its length it is sent as it is, and not in chunks, which a reader of bytes would be.
        length = {} if body is None else {"Content-Length": str(len(body))}
        with _explained(what, sent):
            answer = self._pool.urlopen(
                method,
                url,
                body=sent,
                headers={**headers, **length},
                timeout=urllib3.Timeout(connect=CONNECT_S, read=stream_s or READ_S),
                retries=False,
                redirect=False,
                preload_content=stream_s is None,
            )
        with suppress(ValueError, TypeError):
            theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
            self.clock_ahead_s = (theirs - datetime.now(UTC)).total_seconds()
        return answer

    def events(
        self, path: str, what: str, query: Mapping[str, str], last_id: str = ""
    ) -> Iterator[tuple[str, str]]:
        """(id, data) of each server-sent event that there is now. Does not wait for more."""
        headers = self._headers | {"Accept": "text/event-stream"}
        headers |= {"Last-Event-ID": last_id} if last_id else {}
        answer = self._request("GET", path, what, query, headers, stream_s=_QUIET_S)
        try:
            if answer.status != 200:
                content_type = answer.headers.get("Content-Type", "")
                with _explained(what, None):
                    content = answer.data
                raise errors.refused(answer.status, content_type, content, what, self.hide)
            yield from _events(self._lines(answer))
        finally:
            answer.close()

    def _lines(self, answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
        started, rest = self.clock.monotonic(), b""
        with suppress(HTTPError):  # silence, or the end of the connection: what came has come
            while block := answer.read1(1 << 16):
                *whole, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace").rstrip("\r") for line in whole)
                if self.clock.monotonic() - started > _LONGEST_STREAM_S:
                    return


class _Limited(Exception):
    """RunPod has had enough calls for now."""

    def __init__(self, error: ApiError, pause_s: float) -> None:
        super().__init__()
        self.error, self.pause_s = error, pause_s


class _Body(io.BytesIO):
    """A request's body that knows whether sending it has begun: before, RunPod cannot have acted.

    An error's type does not tell: TLS, and behind a proxy any connection, may also fail after the request.
    """

    begun = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.begun = True
        return super().read(size)


@contextmanager
def _explained(what: str, body: _Body | None) -> Iterator[None]:
    """Raise urllib3's errors in the block as ApiError. `body`: None where the request has none."""
    try:
        yield
    except HTTPError as error:
        never = isinstance(error, NewConnectionError | ConnectTimeoutError | SSLError | ProxyError)
        sent = body.begun if body else not never
        raise errors.silent(_reason(error, sent), what, sent=sent) from None


def _reason(error: HTTPError, sent: bool) -> str:
    reasons: list[tuple[type[HTTPError], str]] = [
        (NewConnectionError, "no connection"),  # a subclass of the next
        (ConnectTimeoutError, f"no connection within {CONNECT_S:g} s"),
        (ReadTimeoutError, f"nothing came within {READ_S:g} s"),
        (SSLError, "the encryption failed" if sent else "its certificate is not accepted"),
        (ProxyError, "the connection to the proxy broke off" if sent else "the proxy refuses"),
        (ProtocolError, "the connection broke off"),
    ]
    return next((text for kind, text in reasons if isinstance(error, kind)), type(error).__name__)


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(id, data) of each whole event; the fields as the standard of server-sent events has them."""
    event_id, parts = "", list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            event_id = value
        elif name == "data":
            parts.append(value)
        elif not line and parts:
            yield event_id, "\n".join(parts)
            parts = []


def _retry_after(headers: Mapping[str, str]) -> float:
    with suppress(ValueError):
        return max(1.0, float(headers.get("Retry-After", "")))
    return POLL_S
