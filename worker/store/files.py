"""Files that appear whole or not at all, and one clear line when the disk refuses."""

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from worker.errors import DiskFull, UserError

CHUNK_BYTES = 1 << 20

_DISK_FULL = "disk full at {path}; free space and run the same command again; what is finished is kept"
_NOT_ALLOWED = "no permission for {path}; change its owner or mode, or name another folder"
_FILE_IN_THE_WAY = "a file stands where {path} needs a folder; move it away or name another folder"
_ANY_DISK_ERROR = "cannot use {path} ({reason}); check the path and its disk"
_DISK_ERRORS = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "{path} is on a read-only disk; name another folder",
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EISDIR: "a folder stands where {path} should be a file; move it away or name another folder",
}

Result = TypeVar("Result")


@contextmanager
def put_in_place(path: Path, unfinished: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path`, on the same disk, when it is complete; else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = unfinished.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: unfinished.replace(path))
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def downloaded(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when it is complete. Raises UserError."""
    with disk_errors(path), put_in_place(path, path.with_name(f".{uuid.uuid4().hex}.part")) as file:
        yield file


def patiently(act: Callable[[], Result]) -> Result:
    """Windows neither replaces nor deletes a file that someone reads: there, try for two seconds."""
    last_s = time.monotonic() + 2
    while True:
        try:
            return act()
        except PermissionError:
            if os.name != "nt" or time.monotonic() > last_s:
                raise
        time.sleep(0.02)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what the disk says about `path` as a UserError: DiskFull where there is no room."""
    try:
        yield
    except OSError as error:
        text = _DISK_ERRORS.get(error.errno or 0, _ANY_DISK_ERROR)
        kind = DiskFull if text is _DISK_FULL else UserError
        raise kind(text.format(path=path, reason=error.strerror)) from None
