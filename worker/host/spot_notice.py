"""Poll EC2's instance metadata for spot notices: interruption and rebalance recommendation.

Does not end the run or power the machine off. A machine that EC2 takes back in its first hour is
free; one that powered itself off a minute earlier is not.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from worker import timestamps
from worker.errors import BadInput
from worker.host.notice import Interruption, Notice

# The run must end this long before EC2 takes the machine: for the checkpoints, the report, the uploads.
MARGIN_S = 20.0
# EC2 gives two minutes; a wrong clock must not make it more.
_LONGEST_NOTICE_S = 120.0
_TIMEOUT_S = 2.0
_TRIES = 3  # polls without an answer after which this is not an EC2 machine
_TOKEN_LIFE_S = 6 * 3600  # EC2's maximum


class SpotNotices:
    """Polls one EC2 machine's metadata. Raises BadInput if the endpoint is not an http:// address."""

    def __init__(self, endpoint: str) -> None:
        self._metadata = _Metadata(endpoint)
        self._over = threading.Event()

    @contextmanager
    def polled(
        self, interruption: Interruption, tell: Callable[[str], None], poll_s: float
    ) -> Iterator[None]:
        """Poll in a thread until the block ends; call `tell` with a line for each notice."""

        def poll() -> None:
            self._poll(interruption, tell, poll_s)

        threading.Thread(target=poll, name="ec2-notices", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()  # a request in progress ends by its timeout; nothing waits for it

    def _poll(self, interruption: Interruption, tell: Callable[[str], None], poll_s: float) -> None:
        """Poll until there is an interruption notice, the block ends, or this is clearly not EC2."""
        failed, answered = 0, False
        while not self._over.is_set():
            try:
                action = self._metadata.get("spot/instance-action")
                advice = self._metadata.get("events/recommendations/rebalance")
            except (OSError, HTTPException):
                failed += 1
                if not answered and failed == _TRIES:
                    return
            else:
                answered = True
                if action and (notice := parse_notice(action, datetime.now(UTC), time.monotonic())):
                    interruption.end(notice)
                    tell(f"stopping: {notice.reason}")
                    return
                if advice and not interruption.drain_reason:
                    interruption.drain("EC2 may soon take this spot machine back (rebalance recommendation)")
                    tell(f"no new songs: {interruption.drain_reason}")
            self._over.wait(poll_s)


def parse_notice(text: str, now: datetime, now_s: float) -> Notice | None:
    """The notice in the text of `spot/instance-action`; None if it is not one. `now_s`: time.monotonic().

    `{"action": "terminate", "time": "2026-11-22T19:50:59Z"}`; stop and hibernate end the run too.
    """
    try:
        at = datetime.fromisoformat(json.loads(text)["time"])
        left_s = (at - now).total_seconds()
    except (ValueError, KeyError, TypeError):
        return None
    deadline = now_s + min(max(left_s, 0.0), _LONGEST_NOTICE_S) - MARGIN_S
    return Notice(f"EC2 takes this spot machine back at {timestamps.stamp(at)}", "spot", deadline)


class _Metadata:
    """EC2's instance metadata (IMDSv2), without proxies or redirects."""

    def __init__(self, endpoint: str) -> None:
        try:
            url = urlsplit(endpoint)
            host, self._port = url.hostname, url.port or 80
        except ValueError:
            host = None
        if not host or url.scheme != "http":
            raise BadInput(
                f"AWS_EC2_METADATA_SERVICE_ENDPOINT is {endpoint!r}, not an http:// address; "
                "correct or unset it"
            )
        self._host, self._path = host, url.path.rstrip("/")
        self._token: str | None = None

    def get(self, path: str) -> str | None:
        """The text at a path, or None if there is none. Raises OSError or HTTPException."""
        for _ in range(2):  # again with a new token if it has expired
            if self._token is None:
                life = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
                status, text = self._ask("PUT", "/latest/api/token", life)
                if status != 200:
                    raise ConnectionError(f"no token: HTTP {status}")
                self._token = text
            token = {"X-aws-ec2-metadata-token": self._token}
            status, text = self._ask("GET", f"/latest/meta-data/{path}", token)
            if status in (200, 404):
                return text if status == 200 else None
            self._token = None
            if status != 401:
                break
        raise ConnectionError(f"HTTP {status}")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, self._path + path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 16).decode("utf-8", "replace").strip()
        finally:
            connection.close()
