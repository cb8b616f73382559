"""What a training prints: passed on as it comes, with its end kept for finding out why it died.

A log that cannot be written, as on a full disk, does not stop the training.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import IO

_TAIL_BYTES = 64 * 1024
_CHUNK = 64 * 1024


class Output:
    """Reads a pipe to its end in a thread of its own. `n_bytes` only grows."""

    def __init__(self, pipe: IO[bytes], target: int):
        self.n_bytes = 0
        self._pipe, self._target = pipe, target
        self._tail = b""
        self._thread = threading.Thread(target=self._pass_on, name="output", daemon=True)
        self._thread.start()

    def close(self, limit_s: float = 5.0) -> str:
        """Wait for its end, when every process that holds the pipe has ended; -> the last lines."""
        self._thread.join(limit_s)
        return self._tail.decode("utf-8", "replace")

    def _pass_on(self) -> None:
        while chunk := os.read(self._pipe.fileno(), _CHUNK):
            self.n_bytes += len(chunk)
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
            with suppress(OSError):
                while chunk:
                    chunk = chunk[os.write(self._target, chunk) :]
        self._pipe.close()
