"""A store in a folder of this machine."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from worker.errors import BadInput
from worker.store.base import SCRATCH, Missing, Store, Stored, checked, is_key
from worker.store.files import CHUNK_BYTES, disk_errors, downloaded, patiently, put_in_place

UNFINISHED = "unfinished"


class FolderStore(Store):
    """Objects as files under a folder; an ETag is the content's SHA-256.

    Every change is made by the one holder of the lock in ROOT/.scratch, next to the only
    unfinished file; the last to leave takes .scratch away. So whatever else lies there was left
    by a process that died, and goes with the next change. Conditions are exact on one machine;
    on a network disk, as exact as its locks.
    """

    def __init__(self, location: str) -> None:
        try:
            folder = Path(location).expanduser()
        except RuntimeError:
            raise BadInput(f"no home folder is known for {location}; write the whole path") from None
        self.location = str(folder)
        self._root = folder.absolute()
        with disk_errors(self._root):
            if self._root.exists() and not self._root.is_dir():
                raise BadInput(f"{location} is a file; name a folder or s3://BUCKET/PREFIX")

    def list(self, prefix: str = "") -> dict[str, Stored]:
        """Links to files are listed, so that no one makes them again; linked folders are not entered."""
        found = {}
        with disk_errors(self._root):
            for folder, _, names in os.walk(self._root, onerror=_raise_unless_gone):
                for path in (Path(folder, name) for name in names):
                    key = path.relative_to(self._root).as_posix()
                    if key.startswith(prefix) and is_key(key):
                        with suppress(FileNotFoundError):  # deleted since, or a link to nothing
                            found[key] = Stored(path.stat().st_size, None)
        return found

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        with self._reading(key) as file:
            content = file.read()
        return content, hashlib.sha256(content).hexdigest()

    def write(self, key: str, content: bytes) -> str:
        with self._changing(key) as path:
            return self._save(path, io.BytesIO(content))

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
            return self._save(path, io.BytesIO(content)) if current == etag else None

    def download(self, key: str, path: Path) -> None:
        with self._reading(key) as stored, downloaded(path) as file:
            shutil.copyfileobj(stored, file, CHUNK_BYTES)

    def delete(self, key: str) -> None:
        """Folders that it leaves empty go too: S3 has none."""
        path = self._path(key)
        with disk_errors(path):
            if not path.is_file():
                return
        with self._changing(key):
            patiently(lambda: path.unlink(missing_ok=True))
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
                raise Missing(key) from None
            with file:
                yield file

    @contextmanager
    def _changing(self, key: str) -> Iterator[Path]:
        """The key's path, with this folder locked and what the dead have left cleared away."""
        from filelock import FileLock  # here: 0.1 s that no reader needs

        path = self._path(key)
        scratch = self._root / SCRATCH
        lock_file = scratch / "lock"
        with disk_errors(path):
            self._root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_file)
            while not lock.is_locked:
                try:
                    scratch.mkdir(exist_ok=True)
                    lock.acquire(poll_interval=0.005)
                except (FileNotFoundError, FileExistsError):
                    # Whoever leaves may take .scratch away between any two of these steps.
                    if not self._root.is_dir() or scratch.is_symlink() or scratch.is_file():
                        raise
            try:
                (scratch / UNFINISHED).unlink(missing_ok=True)
                yield path
            finally:
                # Removed while held: who waits for this very file sees that it lost its name, and
                # starts over. Windows removes no open file; there FileLock does it on release.
                with suppress(OSError):
                    lock_file.unlink()
                lock.release()
                with suppress(OSError):  # someone else is in it
                    scratch.rmdir()

    def _create(self, key: str, body: BinaryIO) -> str | None:
        with self._changing(key) as path:
            taken = os.path.lexists(path) and not path.is_dir()
            return None if taken else self._save(path, body)

    def _save(self, path: Path, body: BinaryIO) -> str:
        digest = hashlib.sha256()
        with put_in_place(path, self._root / SCRATCH / UNFINISHED) as file:
            while chunk := body.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


def _raise_unless_gone(error: OSError) -> None:
    """For os.walk, to which a folder without permission is an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error
