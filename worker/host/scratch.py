"""A temporary folder that goes even when its process is killed: the next one clears it away."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "songs-"
_LOCK = "lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder on the temporary disk, removed at the end; those of dead processes go first."""
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{_PREFIX}*"):
        _remove_if_dead(left)
    folder, lock = _locked_folder(root)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_in_scratch() -> Iterator[None]:
    """What anyone makes in the temporary folder meanwhile goes too, even when the process is killed."""
    before = tempfile.tempdir
    with scratch_folder() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _locked_folder(root: Path) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        lock = FileLock(folder / _LOCK)
        # Between the making of the lock file and its locking, another start may take us for dead.
        with suppress(FileNotFoundError):
            lock.acquire()
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()


def _remove_if_dead(folder: Path) -> None:
    # Without a lock file its process may be about to make one: it is not ours to judge.
    if not (folder / _LOCK).is_file():
        return
    with suppress(OSError, Timeout), FileLock(folder / _LOCK).acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
