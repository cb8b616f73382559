"""Try again while the store cannot be reached, for as long as a night's outage may last."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from worker.errors import Unreachable

LIMIT_S = 1800.0
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)

Result = TypeVar("Result")


class TimedOut(Exception):
    """The store has not answered, and something else cannot wait for it."""


class Retry:
    """Calls again what raised Unreachable, until it works, the limit is over or `give_up` is called.

    `note` hears when waiting begins and when it ends. Safe to share between threads.
    """

    def __init__(self, note: Callable[..., None], limit_s: float = LIMIT_S):
        self._note, self._limit_s = note, limit_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """From now on everything gets one more try at most."""
        self._given_up.set()

    def __call__(self, action: Callable[[], Result]) -> Result:
        """The action's result. Raises what it raised last."""
        began: float | None = None
        for attempt in itertools.count():
            try:
                result = action()
                break
            except Unreachable as error:
                now = time.monotonic()
                if began is None:
                    began = now
                    self._note("unreachable", f"{error} (trying again for {self._limit_s / 60:.0f} min)")
                left_s = began + self._limit_s - now
                pause_s = min(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)], left_s)
                if left_s <= 0 or self._given_up.wait(pause_s):
                    raise
        if began is not None:
            self._note("reachable", f"the store answers again after {time.monotonic() - began:.0f} s")
        return result


def answer(action: Callable[[], Result], go_on: Callable[[], bool]) -> Result:
    """The action's result, waited for as long as `go_on` says. Raises TimedOut."""
    future: Future[Result] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    # A thread of its own, and a daemon: a request may hang for minutes.
    threading.Thread(target=act, name="ask", daemon=True).start()
    while not wait([future], 0.1).done:
        if not go_on():
            raise TimedOut
    return future.result()
