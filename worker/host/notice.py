"""A request that a run should end, and what a run sees of it between two events.

    if interruption.notice:        # save what there is, and end by notice.deadline
    if interruption.no_new_songs:  # finish the songs in progress, begin none

Written by signal handlers (worker/host/signals.py) and by the spot poll (worker/host/spot_notice.py).
"""

import time
from dataclasses import dataclass
from typing import Literal

_GLANCE_S = 0.1


@dataclass(frozen=True)
class Notice:
    """Why the run must end, in one line, and when at the latest."""

    reason: str
    kind: Literal["signal", "spot"]
    deadline: float | None = None  # time.monotonic() by which all must be kept; None: now


class Interruption:
    """What a run looks at between two events. Safe to share between threads; one that nobody
    feeds never interrupts."""

    # No lock: a signal handler would wait for ever for one that its own thread holds. Each field
    # has one writer.
    def __init__(self) -> None:
        self._signal: Notice | None = None
        self._spot: Notice | None = None
        self._drain_reason: str | None = None

    @property
    def notice(self) -> Notice | None:
        """The run must end. Once there it stays, but a later signal makes its deadline now."""
        asked, spot = self._signal, self._spot
        if asked and spot:
            return Notice(f"{asked.reason}, and {spot.reason}", "spot")
        return asked or spot

    @property
    def drain_reason(self) -> str | None:
        """Why no song should be begun although the run may go on, in one line."""
        return self._drain_reason

    @property
    def no_new_songs(self) -> bool:
        """Begin no song: the run drains or ends."""
        return self._drain_reason is not None or self.notice is not None

    @property
    def reason(self) -> str:
        """Why the run ends or begins no song, in one line."""
        notice = self.notice
        return f"stopped ({notice.reason if notice else self._drain_reason})"

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is a notice, at most this long; True if there is one."""
        last_s = time.monotonic() + timeout_s
        # In naps: on Windows a signal ends no longer wait.
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
        """Ask the run to begin no song."""
        self._drain_reason = reason
