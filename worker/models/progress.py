"""How a download goes on: speed and time left, and a line at sane intervals."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from worker.amounts import duration, size

_SPAN_S = 30.0  # over which the speed is taken


@dataclass(frozen=True)
class Snapshot:
    """Where a download is. `bytes_per_s` and `eta_s`: None if not known yet."""

    done_bytes: int
    total_bytes: int
    file: str
    bytes_per_s: float | None
    eta_s: float | None

    def __str__(self) -> str:
        """`1.2 of 2.4 GB, 85.0 MB/s, 14 s left`."""
        text = f"{size(self.done_bytes)} of {size(self.total_bytes)}"
        if self.bytes_per_s:
            text += f", {size(self.bytes_per_s)}/s"
        return text + (f", {duration(self.eta_s)} left" if self.eta_s else "")


class Meter:
    """Given to a download as its `progress`; calls `show` every `every_s` and at the end.

    Safe to share between threads.
    """

    def __init__(
        self,
        show: Callable[[Snapshot], None],
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._every_s, self._clock = show, every_s, clock
        self._seen: deque[tuple[float, int]] = deque()
        self._shown_s: float | None = None
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, file: str) -> None:
        """So many bytes of all are here; `file` is the one that the last came for."""
        with self._lock:
            now_s = self._clock()
            if not self._seen or now_s - self._seen[-1][0] >= 1:
                self._seen.append((now_s, done))
            while len(self._seen) > 1 and now_s - self._seen[1][0] >= _SPAN_S:
                self._seen.popleft()
            if self._shown_s is None:
                self._shown_s = now_s  # what was there before is no news
            if now_s - self._shown_s < self._every_s and done < total:
                return
            self._shown_s = now_s
            self._show(self._snapshot(now_s, done, total, file))

    def _snapshot(self, now_s: float, done: int, total: int, file: str) -> Snapshot:
        since_s, before = self._seen[0]
        speed = (done - before) / (now_s - since_s) if now_s > since_s and done > before else None
        return Snapshot(done, total, file, speed, (total - done) / speed if speed else None)
