"""Files that appear whole or not at all, and one line for each error of the disk."""

import errno
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from worker.errors import DiskFull, UserError

if sys.platform != "win32":
    import fcntl

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
    """A file to write. When complete it becomes `path`, on the same disk; else it is removed."""
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
    """A file to write that becomes `path` when it is complete. Raises UserError.

    Removes what a killed process left of the same file.
    """
    mark = f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}-"
    with disk_errors(path):
        for left in path.parent.glob(f"{mark}*.part"):
            _remove_if_left(left)
        with put_in_place(path, path.with_name(f"{mark}{uuid.uuid4().hex}.part")) as file:
            _try_lock(file)  # before the first byte: see _remove_if_left
            yield file


def _remove_if_left(unfinished: Path) -> None:
    """Remove an unfinished file unless its writer is alive.

    A living writer has locked its file, or not written yet. Windows refuses to remove an open file.
    """
    with suppress(OSError):
        if os.name != "nt":
            with unfinished.open("rb") as file:
                if not os.fstat(file.fileno()).st_size or not _try_lock(file):
                    return
        unfinished.unlink()


def _try_lock(file: BinaryIO) -> bool:
    """True if the file is locked now, until it is closed; always false on Windows."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def patiently(act: Callable[[], Result]) -> Result:
    """Call `act`, on Windows again for two seconds: there a file that is being read cannot be replaced."""
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
    """Raise an error of the disk at `path` as UserError, a full disk or quota as DiskFull."""
    try:
        yield
    except OSError as error:
        text = _DISK_ERRORS.get(error.errno or 0, _ANY_DISK_ERROR)
        kind = DiskFull if text is _DISK_FULL else UserError
        raise kind(text.format(path=path, reason=error.strerror)) from None
