"""A temporary folder that is deleted even if its process is killed: by the next process."""

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
    """A new temporary folder, deleted at the end. Deletes the folders of dead processes first."""
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
    """Make a scratch folder the default temporary folder, so that all files in it are deleted too."""
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
        # Before the new lock file is locked, another process may take this one for dead and delete it.
        with suppress(FileNotFoundError):
            lock.acquire()
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()


def _remove_if_dead(folder: Path) -> None:
    # Without a lock file it is something else's folder, or its process is about to create the file.
    if not (folder / _LOCK).is_file():
        return
    with suppress(OSError, Timeout), FileLock(folder / _LOCK).acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
