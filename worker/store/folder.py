"""A store in a folder of this machine."""

import hashlib
import io
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from worker.errors import BadInput, UserError
from worker.store.base import SCRATCH, Missing, Store, Stored, checked, is_key
from worker.store.files import CHUNK_BYTES, disk_errors, downloaded, patiently, put_in_place

UNFINISHED = "unfinished"


class FolderStore(Store):
    """Objects as files under a folder; an ETag is the content's SHA-256.

    One process at a time makes a change: the holder of the lock in ROOT/.scratch, which also holds
    the only unfinished file. The last process to leave removes .scratch. So anything else in it
    was left by a killed process, and the next change removes it. Conditions are exact on one
    machine; on a network disk, as exact as its locks.

    The first write makes the folder. When it is removed or replaced after that, by whomever,
    everything raises UserError: a new folder would look like one in which nothing is done yet.
    """

    def __init__(self, location: str) -> None:
        try:
            folder = Path(location).expanduser()
        except RuntimeError:
            raise BadInput(f"no home folder is known for {location}; write the whole path") from None
        self.location = str(folder)
        self._root = folder.absolute()
        self._found: os.stat_result | None = None  # the folder that was written to
        self._pin: weakref.finalize[..., FolderStore] | None = None
        self._kept: set[str] = set()  # keys that were written and not deleted here
        with disk_errors(self._root):
            if self._root.exists() and not self._root.is_dir():
                raise BadInput(f"{location} is a file; name a folder or s3://BUCKET/PREFIX")

    def list(self, prefix: str = "") -> dict[str, Stored]:
        """Links to files are listed, so that nobody makes them again; linked folders are not entered."""
        found = {}
        with disk_errors(self._root):
            for folder, _, names in os.walk(self._root, onerror=_raise_unless_gone):
                for path in (Path(folder, name) for name in names):
                    key = path.relative_to(self._root).as_posix()
                    if key.startswith(prefix) and is_key(key):
                        with suppress(FileNotFoundError):  # deleted since, or a link to nothing
                            about = path.stat()
                            written_at = datetime.fromtimestamp(about.st_mtime, UTC)
                            found[key] = Stored(about.st_size, None, written_at)
            self._check_root()  # afterwards: removed meanwhile, it would look half empty
        return found

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        with self._reading(key) as file:
            content = file.read()
        return content, hashlib.sha256(content).hexdigest()

    def sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._reading(key) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def write(self, key: str, content: bytes) -> str:
        with self._changing(key) as path:
            return self._save(key, path, io.BytesIO(content))

    def create(self, key: str, content: bytes) -> str | None:
        return self._create(key, io.BytesIO(content))

    def create_file(self, key: str, path: Path) -> str | None:
        with disk_errors(path), path.open("rb") as body:
            return self._create(key, body)

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        with self._changing(key) as path:
            try:
                current = self.read_tagged(key)[1]
            except Missing:
                return None
            return self._save(key, path, io.BytesIO(content)) if current == etag else None

    def download(self, key: str, path: Path) -> None:
        with self._reading(key) as stored, downloaded(path) as file:
            shutil.copyfileobj(stored, file, CHUNK_BYTES)

    def delete(self, key: str) -> None:
        """Folders that it leaves empty go too: S3 has none."""
        path = self._path(key)
        with disk_errors(path):
            if not path.is_file():
                self._check_root()
                return
        with self._changing(key):
            patiently(lambda: path.unlink(missing_ok=True))
            self._kept.discard(key)
            with suppress(OSError):  # until one is not empty
                for parent in path.relative_to(self._root).parents[:-1]:
                    (self._root / parent).rmdir()

    def _path(self, key: str) -> Path:
        path = self._root / checked(key)
        for used in (path, self._root / SCRATCH):
            if not Path(os.path.realpath(used)).is_relative_to(os.path.realpath(self._root)):
                raise BadInput(f"{used} is a link that leads out of {self.location}; put the real file there")
        return path

    @contextmanager
    def _reading(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with disk_errors(path):
            try:
                file = patiently(lambda: path.open("rb"))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._check_root()
                raise Missing(key) from None
            with file:
                yield file

    @contextmanager
    def _changing(self, key: str) -> Iterator[Path]:
        """The key's path, while this folder is locked and rid of what killed processes left."""
        from filelock import FileLock  # here: 0.1 s that a reader does not need

        path = self._path(key)
        scratch = self._root / SCRATCH
        lock_file = scratch / "lock"
        with disk_errors(path):
            self._check_root()
            if not self._found:
                self._root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_file)
            while not lock.is_locked:
                try:
                    scratch.mkdir(exist_ok=True)
                    lock.acquire(poll_interval=0.005)
                except (FileNotFoundError, FileExistsError):
                    # The last to leave may remove .scratch between any two of these steps.
                    self._check_root()
                    if not self._root.is_dir() or scratch.is_symlink() or scratch.is_file():
                        raise
            try:
                (scratch / UNFINISHED).unlink(missing_ok=True)
                yield path
            finally:
                # Removed while held: a process that waits for this file sees that it has no name
                # any more, and starts over. Windows removes no open file; FileLock does on release.
                with suppress(OSError):
                    lock_file.unlink()
                lock.release()
                with suppress(OSError):  # someone else is in it
                    scratch.rmdir()

    def _create(self, key: str, body: BinaryIO) -> str | None:
        with self._changing(key) as path:
            taken = os.path.lexists(path) and not path.is_dir()
            return None if taken else self._save(key, path, body)

    def _save(self, key: str, path: Path, body: BinaryIO) -> str:
        digest = hashlib.sha256()
        with put_in_place(path, self._root / SCRATCH / UNFINISHED) as file:
            while chunk := body.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        self._kept.add(key)
        if not self._found:
            self._remember_root()
        return digest.hexdigest()

    def _check_root(self) -> None:
        """Raises UserError if the folder is not the one that was written to."""
        if not self._found:
            return
        try:
            if os.path.samestat(self._root.stat(), self._found):
                return
            happened = "replaced"
        except (FileNotFoundError, NotADirectoryError):
            happened = "removed"
        # Some network disks give a folder a new number; what was written is still there then.
        kept = list(self._kept)
        if happened == "replaced" and (not kept or any(os.path.lexists(self._root / key) for key in kept)):
            self._remember_root()
            return
        raise UserError(
            f"the folder {self.location} was {happened} while it was in use; "
            "bring it back, then run the same command again"
        ) from None

    def _remember_root(self) -> None:
        self._found = self._root.stat()
        if self._pin:
            self._pin()
        if os.name != "nt":  # where no number is used twice
            # While it is open, a new folder cannot get its number.
            self._pin = weakref.finalize(self, os.close, os.open(self._root, os.O_RDONLY | os.O_DIRECTORY))


def _raise_unless_gone(error: OSError) -> None:
    """For os.walk, to which a folder without permission is an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error
