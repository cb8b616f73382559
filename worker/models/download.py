"""One file from the hub: resumed after a dropped connection and after a kill, verified, then put in place.

Each process writes a file of its own, `.NAME.COMMIT8.RANDOM8.part`, beside the target. What a killed
process left is adopted: renamed, read for its checksum, and continued. A process whose file was adopted
although it lives finds its name gone before it writes again, and begins anew. So no lock is needed: the
target only ever is a file whose checksum was right as it was written. (A process that is halted exactly
between that look and its write, while another finishes its file, then writes the bytes that are there.)
"""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from worker.errors import UserError
from worker.models.http import Passing
from worker.models.hub import Body, Hub
from worker.models.manifest import UNFINISHED, File
from worker.store.files import CHUNK_BYTES, patiently

_CHECKSUM_TRIES = 3


class Source(NamedTuple):
    """A file at a commit of a repository, and what its content is to be."""

    repo: str
    commit: str
    name: str
    file: File


class _Taken(Exception):
    """Another process has adopted our unfinished file."""


def download(hub: Hub, source: Source, target: Path, told: Callable[[int], None]) -> None:
    """Have the file at `target`. `told` is given the bytes that have come, negative if they were wrong.

    Raises UserError, and OSError of the disk; what has come is kept for the next time, unless it was wrong.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    adopts, wrong = True, 0
    while wrong < _CHECKSUM_TRIES:
        part = _PartFile(target, source, told)
        try:
            if adopts:
                part.adopt()
            adopts = False  # never again: two processes would take the same file from each other
            part.open()
            _fill(part, hub, source)
            if part.put_in_place():
                return
            wrong += 1
        except _Taken:
            told(-part.n_bytes)
        finally:
            part.close()
    raise UserError(
        f"{source.name} of {source.repo} came {wrong} times with a wrong checksum; run it again later, "
        "or check what changes downloads on the way (a proxy?)"
    )


def unfinished(target: Path, commit: str) -> list[tuple[int, Path]]:
    """What there is of a file at this commit, with its bytes; the largest first."""
    found = []
    for path in target.parent.glob(_pattern(target, commit, "*")):
        with suppress(FileNotFoundError):  # adopted by another process
            found.append((path.lstat().st_size, path))
    return sorted(found, reverse=True)


def _pattern(target: Path, commit: str, owner: str) -> str:
    return f".{target.name}.{commit[:8]}.{owner}{UNFINISHED}"


def _fill(part: "_PartFile", hub: Hub, source: Source) -> None:
    patience, most, etag = hub.patience(), part.n_bytes, ""
    while part.n_bytes < source.file.size:
        try:
            with hub.body(source.repo, source.commit, source.name, part.n_bytes, etag) as body:
                etag = body.etag
                part.take(body)
            fault = Passing("it sends less than the whole file")
        except Passing as passing:
            fault = passing
        if part.n_bytes > most:
            most = part.n_bytes
            patience.reset()
        if part.n_bytes < source.file.size:
            try:
                patience.after(fault)
            except Passing:
                raise hub.given_up(fault, f"{source.name} of {source.repo}") from None


class _PartFile:
    """The unfinished file of one process. `n_bytes`: of it, all hashed."""

    def __init__(self, target: Path, source: Source, told: Callable[[int], None]) -> None:
        self._target, self._file, self._told = target, source.file, told
        self._commit = source.commit
        self._path = target.with_name(_pattern(target, source.commit, uuid.uuid4().hex[:8]))
        self._handle: int | None = None
        self._hash, self.n_bytes = self._file.hash(), 0

    def adopt(self) -> None:
        """Make ours the largest one that a process left."""
        for n_bytes, left in unfinished(self._target, self._commit):
            with suppress(FileNotFoundError, PermissionError):  # another was quicker; Windows: it is in use
                if left.is_symlink() or n_bytes > self._file.size:
                    left.unlink()
                    continue
                left.rename(self._path)
                return

    def open(self) -> None:
        """Open it, and hash what it holds."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._handle = os.open(self._path, flags, 0o644)
        while block := os.read(self._handle, CHUNK_BYTES):
            self._hashed(block)

    def take(self, body: Body) -> None:
        """Append what comes, up to the file's size and one block over. Raises what the body raises."""
        if body.start != self.n_bytes:
            self._restart()
            if body.start:
                raise Passing("it sends another part than it was asked for")
        waiting = bytearray()
        try:
            for block in body.blocks:
                waiting += block
                if len(waiting) >= CHUNK_BYTES:
                    ours, waiting = waiting, bytearray()
                    self._append(ours)
                if self.n_bytes > self._file.size:
                    return
        except Passing:
            self._append(waiting)
            raise
        self._append(waiting)

    def put_in_place(self) -> bool:
        """True if it is the whole file now; else it was wrong, and is removed."""
        right = self.n_bytes == self._file.size and self._hash.hexdigest() == self._file.digest
        if right:
            os.fsync(self._descriptor)
        self.close()
        try:
            if right:
                patiently(lambda: self._path.replace(self._target))
            else:
                self._told(-self.n_bytes)
                self._path.unlink()
        except FileNotFoundError:
            raise _Taken from None
        return right

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    @property
    def _descriptor(self) -> int:
        if self._handle is None:
            raise ValueError("not open")
        return self._handle

    def _append(self, block: bytes | bytearray) -> None:
        if not os.path.lexists(self._path):
            raise _Taken
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._hashed(block)

    def _hashed(self, block: bytes | bytearray) -> None:
        self._hash.update(block)
        self.n_bytes += len(block)
        self._told(len(block))

    def _restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._told(-self.n_bytes)
        self._hash, self.n_bytes = self._file.hash(), 0
