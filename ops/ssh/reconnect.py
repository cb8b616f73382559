"""The time between a lost connection to a box and the next one."""

import time

from ops.ssh.box import Box
from ops.ssh.link import NoAnswer, Report
from worker.errors import UserError

RETRY_AFTER_S = (1, 2, 5, 10, 30)
GONE_AFTER_S = 120


class BoxGone(UserError):
    """The box has not answered for GONE_AFTER_S."""


class Reconnection:
    """`tries`: how many were made since the loss; whoever gets something over the connection sets it to 0.

    `what`: what goes on when the connection is back.
    """

    def __init__(self, box: Box, report: Report, what: str) -> None:
        self.tries = 0
        self._box, self._report, self._what, self._since_s = box, report, what, 0.0

    def wait(self, error: Exception, where: str) -> None:
        """Wait until the next try. Raises BoxGone where nothing has answered for GONE_AFTER_S."""
        self._box.close()
        if self.tries == 0:
            self._since_s = time.monotonic()
            self._report(f"the connection was lost {where}; {self._what} again when it is back")
        if isinstance(error, NoAnswer) and time.monotonic() - self._since_s > GONE_AFTER_S:
            raise BoxGone(f"{self._box.label} does not answer any more; run it again to resume") from None
        time.sleep(RETRY_AFTER_S[min(self.tries, len(RETRY_AFTER_S) - 1)])
        self.tries += 1
