"""Answers of a store, for a run that cannot wait for them without end.

A request may hang for minutes. A notice is heard meanwhile, and songs in work are not held up for
long: then NotNow is raised, and the request goes on in a thread that nobody waits for.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from worker.errors import Unreachable
from worker.host.notice import Interruption
from worker.store.retry import Patience

# How long songs in work are held up by a store that is asked for the next one.
_ASK_S = 10.0

Result = TypeVar("Result")


class NotNow(Exception):
    """The store has not answered, and something else cannot wait for it."""


class Asking:
    """Asks a run's store."""

    def __init__(self, patience: Patience, interruption: Interruption):
        self._patience, self._interruption = patience, interruption

    def __call__(self, action: Callable[[], Result], *, busy: bool) -> Result:
        """The action's result, which a notice does not wait for, and songs in work (`busy`) not for long.

        Raises NotNow; the action may go on then, and must not mind being begun again.
        """
        until = time.monotonic() + _ASK_S
        try:
            return answer(
                action if busy else lambda: self._patience(action),
                lambda: not self._interruption.notice and not (busy and time.monotonic() > until),
            )
        except Unreachable:
            if busy or self._interruption.notice:
                raise NotNow from None
            raise


def answer(action: Callable[[], Result], go_on: Callable[[], bool]) -> Result:
    """The action's result, waited for as long as `go_on` says. Raises NotNow."""
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
            raise NotNow
    return future.result()
