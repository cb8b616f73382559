"""Standard streams that never fail: output is dropped when the disk is full or the pipe is closed.

The log and the songs are written elsewhere, and a failed write to a terminal must not end hours of
paid work. Does not report what was dropped. The exit code stays the run's own, where Python would
exit with 120 because of unwritten output.
"""

import io
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Lasting(io.RawIOBase):
    """A raw stream whose writes always succeed."""

    def __init__(self, raw: io.RawIOBase):
        self._raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, content: "ReadableBuffer") -> int:
        left = memoryview(content)
        n_bytes = len(left)
        with suppress(OSError):
            while n_written := self._raw.write(left):
                left = left[n_written:]
        return n_bytes


def make_lasting() -> None:
    """Replace sys.stdout and sys.stderr by such streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # else there is no stream, or a test's
            raw: Any = getattr(stream.buffer, "raw", stream.buffer)
            lasting = io.TextIOWrapper(
                Lasting(raw),  # type: ignore[type-var]  # unbuffered, as with `python -u`
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,
            )
            setattr(sys, name, lasting)
