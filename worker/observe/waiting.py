"""Says what a run waits for while nothing else is shown: after some seconds, then at growing intervals.

    still loading PyTorch and the model rehearsal (40 s so far; this machine is busy: load 14 on 2 cores)

Use as a context manager: a thread looks once a second. Does not know what a run does: whoever
displays it names each stage.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from worker.amounts import duration
from worker.host.load import busy

_LOOK_EVERY_S = 1.0
_FIRST_S = 10.0
_LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True)
class _Stage:
    what: str
    since_s: float
    next_s: float  # when a line is due
    pause_s: float


class Waiting:
    """Calls `say` with a line when a stage lasts. `clock`: seconds; `busy`: see worker/host/load.py."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float], busy: Callable[[], str] = busy
    ):
        self._say, self._clock, self._busy = say, clock, busy
        self._lock = threading.RLock()
        self._stage: _Stage | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="waiting", daemon=True)

    def __enter__(self) -> "Waiting":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_LOOK_EVERY_S)

    def begin(self, what: str, first_s: float = _FIRST_S) -> None:
        """A stage begins, `what` it does as it follows "still"; its first line is due in `first_s`."""
        now_s = self._clock()
        with self._lock:
            self._stage = _Stage(what, now_s, now_s + first_s, first_s)

    def look(self) -> None:
        """Say the stage's line if it is due."""
        now_s = self._clock()
        with self._lock:
            stage = self._stage
            if stage is None or now_s < stage.next_s:
                return
            pause_s = min(2 * stage.pause_s, _LONGEST_PAUSE_S)
            self._stage = replace(stage, next_s=now_s + pause_s, pause_s=pause_s)
        facts = [f"{duration(round(now_s - stage.since_s))} so far", self._busy()]
        self._say(f"still {stage.what} ({'; '.join(fact for fact in facts if fact)})")

    def _look_on(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            self.look()
