"""One launch at a time: a lease in the bucket, whoever starts it and wherever.

The holder renews it; another waits. A lease that has not changed for TTL_S on the waiter's own
clock belongs to a process that has died, and is taken over. EC2's ClientToken cannot do this: it is
idempotent in one zone only, and two launches may walk the zones in different orders.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

from worker.errors import UserError
from worker.store import Missing, Store

KEY = "locks/launch"
TTL_S = 60.0
RENEW_S = 10.0
LOOK_S = 0.5


@dataclass
class Lease:
    """Hold it with `with`; `check()` right before what nobody else may do."""

    store: Store
    owner: str
    tell: Callable[[str], None]
    ttl_s: float = TTL_S
    renew_s: float = RENEW_S

    def __post_init__(self) -> None:
        self._etag: str | None = None
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._beats = 0

    def __enter__(self) -> "Lease":
        self._take()
        self._renewer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._renewer.join()
        if self._etag:
            with suppress(UserError):  # it lapses by itself
                self.store.delete(KEY)

    def check(self) -> None:
        """Raises UserError if the lease is no longer ours."""
        if not self._etag:
            raise UserError("another launch took over while this one was held up; run: inv status")

    def _take(self) -> None:
        seen: tuple[str, float] | None = None
        while True:
            self._etag = self.store.create(KEY, self._content())
            if self._etag:
                return
            try:
                content, etag = self.store.read_tagged(KEY)
            except Missing:
                continue
            if seen is None:
                self.tell(f"another launch is under way ({_holder(content)}); waiting for it")
            if seen is None or seen[0] != etag:
                seen = (etag, time.monotonic())
            elif time.monotonic() - seen[1] >= self.ttl_s:
                self.tell("that launch has stopped without an end; going on")
                self._etag = self.store.replace(KEY, self._content(), etag)
                if self._etag:
                    return
                seen = None
            time.sleep(LOOK_S)

    def _renew(self) -> None:
        while not self._stop.wait(self.renew_s):
            try:
                self._etag = self.store.replace(KEY, self._content(), self._etag or "")
            except UserError:
                continue  # it holds until the ttl is over; the next try may succeed
            if not self._etag:
                return

    def _content(self) -> bytes:
        self._beats += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps({"schema": 1, "owner": self.owner, "at": now, "beat": self._beats}).encode()


def _holder(content: bytes) -> str:
    try:
        return str(json.loads(content)["owner"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
