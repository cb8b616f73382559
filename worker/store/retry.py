"""Wait for a store: try again while it cannot be reached, or stop waiting for one answer.

An outage is waited out for half an hour, a refusal of what was allowed before for five minutes.
"""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from worker.amounts import duration
from worker.errors import Denied, Unreachable

LIMIT_S = 1800.0
# New permissions and a clock that is set take minutes to arrive. Longer, and it is for good.
DENIED_LIMIT_S = 300.0
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)

Result = TypeVar("Result")


class TimedOut(Exception):
    """The store has not answered, and something else cannot wait for it."""


class Retry:
    """Calls again what raised Unreachable, until it works, the limit is over or `give_up` is called.

    While it raises Denied, at most `denied_limit_s`. `note` is called when waiting begins and when
    it ends. Safe to share between threads.
    """

    def __init__(
        self,
        note: Callable[..., None],
        limit_s: float = LIMIT_S,
        denied_limit_s: float = DENIED_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._note, self._limit_s, self._denied_limit_s = note, limit_s, denied_limit_s
        self._clock = clock
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """From now on everything gets one more try at most."""
        self._given_up.set()

    def __call__(self, action: Callable[[], Result]) -> Result:
        """The action's result. Raises what it raised last."""
        began_s: float | None = None
        denied_s: float | None = None  # since when it has been denied again and again
        for attempt in itertools.count():
            try:
                result = action()
                break
            except Unreachable as error:
                now_s = self._clock()
                first = began_s is None
                began_s = now_s if began_s is None else began_s
                left_s = began_s + self._limit_s - now_s
                if isinstance(error, Denied):
                    denied_s = now_s if denied_s is None else denied_s
                    left_s = min(left_s, denied_s + self._denied_limit_s - now_s)
                else:
                    denied_s = None
                if first:
                    for_s = f"{left_s:.0f} s" if left_s < 60 else f"{left_s / 60:.0f} min"
                    self._note("unreachable", f"{error} (trying again for {for_s})")
                pause_s = min(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)], left_s)
                if left_s <= 0 or self._given_up.wait(pause_s):
                    raise
        if began_s is not None:
            self._note("reachable", f"the store answers again after {duration(self._clock() - began_s)}")
        return result


def answer(action: Callable[[], Result], go_on: Callable[[], bool]) -> Result:
    """The action's result, waited for as long as `go_on` says. Raises TimedOut."""
    future: Future[Result] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # whoever waits gets it, a SystemExit too
            future.set_exception(error)

    # A thread of its own, and a daemon: a request may hang for minutes.
    threading.Thread(target=act, name="ask", daemon=True).start()
    while not wait([future], 0.1).done:
        if not go_on():
            raise TimedOut
    return future.result()
