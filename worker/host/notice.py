"""A request to end a run, as the run sees it between two events.

    if interruption.notice:        # save the songs in progress, and end by notice.deadline
    if interruption.no_new_songs:  # finish the songs in progress, begin no others

Set by signal handlers (worker/host/signals.py) and by polling for spot notices
(worker/host/spot_notice.py).
"""

import time
from dataclasses import dataclass
from typing import Literal

_GLANCE_S = 0.1


@dataclass(frozen=True)
class Notice:
    """Why a run must end, in one line, and by when."""

    reason: str
    kind: Literal["signal", "spot"]
    deadline: float | None = None  # time.monotonic() by which everything must be saved; None: at once


class Interruption:
    """What a run checks between two events. Thread-safe. Never interrupts unless `end` or `drain` is
    called."""

    # No lock: a signal handler would deadlock on one that its own thread holds. Each field has a
    # single writer.
    def __init__(self) -> None:
        self._signal: Notice | None = None
        self._spot: Notice | None = None
        self._drain_reason: str | None = None

    @property
    def notice(self) -> Notice | None:
        """Set when the run must end, and never unset. A later signal changes its deadline to now."""
        asked, spot = self._signal, self._spot
        if asked and spot:
            return Notice(f"{asked.reason}, and {spot.reason}", "spot")
        return asked or spot

    @property
    def drain_reason(self) -> str | None:
        """Why no song should begin while the songs in progress may finish, in one line."""
        return self._drain_reason

    @property
    def no_new_songs(self) -> bool:
        """True if no song should begin: the run drains or ends."""
        return self._drain_reason is not None or self.notice is not None

    @property
    def reason(self) -> str:
        """Why the run ends or begins no more songs, in one line."""
        notice = self.notice
        return f"stopped ({notice.reason if notice else self._drain_reason})"

    def wait(self, timeout_s: float) -> bool:
        """Wait for a notice, `timeout_s` at most; True if there is one."""
        last_s = time.monotonic() + timeout_s
        # In short sleeps: on Windows a signal does not end a longer one.
        while self.notice is None and (left_s := last_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _GLANCE_S))
        return self.notice is not None

    def end(self, notice: Notice) -> None:
        """Ask the run to end."""
        if notice.kind == "signal":
            self._signal = notice
        else:
            self._spot = notice

    def drain(self, reason: str) -> None:
        """Ask the run to finish the songs in progress and begin no others."""
        self._drain_reason = reason
