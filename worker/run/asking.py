"""Answers of a store, for a run that cannot wait for them without end.

A request may hang for minutes. A notice is heard meanwhile, and songs in work are not held up for
long: then TimedOut is raised, and the request goes on in a thread that nobody waits for.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from worker.errors import Unreachable
from worker.host.notice import Interruption
from worker.store.retry import Retry, TimedOut, answer

# How long songs in work are held up by a store that is asked for the next one.
_ASK_S = 10.0

Result = TypeVar("Result")


class Asking:
    """Asks a run's store."""

    def __init__(self, retry: Retry, interruption: Interruption):
        self._retry, self._interruption = retry, interruption

    def __call__(self, action: Callable[[], Result], *, busy: bool) -> Result:
        """The action's result, which a notice does not wait for, and songs in work (`busy`) not for long.

        Raises TimedOut; the action may go on then, and must not mind being begun again.
        """
        until = time.monotonic() + _ASK_S
        try:
            return answer(
                action if busy else lambda: self._retry(action),
                lambda: not self._interruption.notice and not (busy and time.monotonic() > until),
            )
        except Unreachable:
            if busy or self._interruption.notice:
                raise TimedOut from None
            raise
