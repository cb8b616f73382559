"""How fast each song in work advances, hence when it will be done."""

import time
from collections import deque
from collections.abc import Callable

from worker.engine import Progress

_OVER_S = 60.0


class Pace:
    """Looks at the progress of the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: deque[tuple[float, Progress]] = deque()

    def note(self, event: Progress) -> None:
        """Frames so far, as of now."""
        now = self._clock()
        self._seen.append((now, event))
        while self._seen[0][0] < now - _OVER_S:
            self._seen.popleft()

    def left_s(self) -> dict[str, float]:
        """Seconds that each song in work still needs; those whose pace is not known are left out."""
        left: dict[str, float] = {}
        if not self._seen:
            return left
        until, latest = self._seen[-1]
        for song, (n_done, n_frames) in latest.frames.items():
            first = next(((at, event) for at, event in self._seen if song in event.frames), None)
            if first and until > first[0]:
                rate = (n_done - first[1].frames[song][0]) / (until - first[0])
                if rate > 0:
                    left[song] = (n_frames - n_done) / rate - (self._clock() - until)
        return left
