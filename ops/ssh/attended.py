"""A script on the box that runs for as long as this program attends to it (remote/attended.sh).

It ends when it is closed, when this program ends, however that happens, and within SILENCE_S of a connection
that died silently. It is never started again: whoever needs it then makes a new one.
"""

import re
import threading
import time
from collections.abc import Callable

from ops.ssh.box import NOT_DEPLOYED, Box, CommandResult
from ops.ssh.link import LOST
from worker.errors import BadInput, UserError

BEAT_S = 10.0
SILENCE_S = 60
_POLL_S = 0.1
_BLOCK = 32768


class Attended:
    """A script of the deployed remote/ folder. A `with` block closes it. Raises LinkLost."""

    def __init__(self, box: Box, script: str, *arguments: str) -> None:
        self._box, self._script = box, script
        self._channel = box.start_remote("attended.sh", str(SILENCE_S), script, *arguments)
        self._printed = bytearray()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> "Attended":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and wait a moment until it has, as the next one may need what it holds."""
        self._closed.set()
        try:
            self._channel.shutdown_write()
            self._channel.status_event.wait(2)
        except LOST:
            pass  # it ends by itself
        self._channel.close()

    @property
    def printed(self) -> str:
        """All that it has printed so far, after what the login shell did."""
        while self._channel.recv_ready():
            self._printed += self._channel.recv(_BLOCK)
        return self._printed.decode("utf-8", "replace")

    @property
    def ended(self) -> bool:
        """Whether it has ended, or the connection has."""
        return bool(self._channel.exit_status_ready() or self._channel.closed)

    def wait_for(
        self, pattern: str, limit_s: float, check: Callable[[], None] = lambda: None
    ) -> re.Match[str]:
        """The first match in what it prints. Raises UserError if it ended before, or none came in this time.

        `check` is called again and again meanwhile, and may raise.
        """
        until_s = time.monotonic() + limit_s
        while True:
            ended = self.ended  # before the text, so that none is missed
            if found := re.search(pattern, self.printed):
                return found
            if ended:
                raise self.problem()
            if time.monotonic() > until_s:
                where = f"remote/{self._script} on {self._box.label}"
                raise UserError(f"{where} was not ready within {limit_s:.0f} s; run it again")
            check()
            time.sleep(_POLL_S)

    @property
    def code(self) -> int:
        """Its exit code; below 0 where the connection ended first."""
        return int(self._channel.exit_status) if self._channel.exit_status_ready() else -1

    def problem(self) -> UserError:
        """Why it has ended."""
        if self.code < 0:
            return self._box.lost()
        if self.code == NOT_DEPLOYED:
            return self._box.not_deployed(self._script)
        kind = BadInput if self.code == BadInput.code else UserError
        return kind(CommandResult(self.code, self.printed, "").reason())

    def _beat(self) -> None:
        while not (self._closed.is_set() or self.ended):
            try:
                self._channel.sendall(b"\n")
            except LOST:
                return
            self._closed.wait(BEAT_S)
