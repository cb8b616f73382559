"""Standard streams that cannot end a run: what a full disk or a closed pipe refuses is dropped.

The log and the songs go elsewhere, and hours of paid work must not end for a line on a terminal.
Does not say what was dropped: there is nowhere to say it. The exit code stays what it is, where
Python would make 120 of it for what it could not write at the end.
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
    """Put such streams in the place of sys.stdout and sys.stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # else there is none, or someone else's
            raw: Any = getattr(stream.buffer, "raw", stream.buffer)
            lasting = io.TextIOWrapper(
                Lasting(raw),  # type: ignore[type-var]  # not buffered, as `python -u` has it
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,
            )
            setattr(sys, name, lasting)
