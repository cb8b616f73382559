"""What the files of a set are to be: for each repository its commit, for each file its size and checksum.

The same text twice: `.plan.json` while a set is being fetched, so that every process and every run after a
kill fetches the same commits; `.complete.json`, written last, when all files are there and verified.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from worker import timestamps
from worker.errors import BadInput
from worker.store.base import json_bytes
from worker.store.files import CHUNK_BYTES, disk_errors, put_in_place

SCHEMA = 1
MARKER, PLAN = ".complete.json", ".plan.json"
# How the names of files end that are not whole yet: a model's, and one of these here.
UNFINISHED, NEW = ".part", ".new"

# Names come from the hub: none may lead out of its folder, on Windows either.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")


class Hash(Protocol):
    """What hashlib's objects have in common."""

    def update(self, content: bytes | bytearray, /) -> object: ...
    def hexdigest(self) -> str: ...


class File(NamedTuple):
    """Size in bytes and checksum, as the hub names it: sha256 of large files, git's blob id of small ones."""

    size: int
    kind: str  # "sha256" or "git_sha1"
    digest: str

    def hash(self) -> Hash:
        """A new hash, to be given the whole content."""
        if self.kind == "sha256":
            return hashlib.sha256()
        # As git itself names content; not for security.
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def matches(self, path: Path) -> bool:
        """True if that is a real file with this content; reads it all if its size is right."""
        try:
            if path.is_symlink() or path.stat().st_size != self.size:
                return False
            digest = self.hash()
            with path.open("rb") as file:
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        return digest.hexdigest() == self.digest


class Pinned(NamedTuple):
    """One repository of a set at one commit. `folder`: below the set's; `files`: by name."""

    repo: str
    folder: str
    commit: str
    files: Mapping[str, File]


@dataclass(frozen=True)
class Manifest:
    """All files of a set. `verified_at`: when every checksum was last right; "" in a plan.

    `unfit`: these very files were seen to be no model, although every checksum is right.
    """

    name: str
    parts: tuple[Pinned, ...]
    verified_at: str = field(default="", compare=False)
    unfit: bool = field(default=False, compare=False)

    @property
    def n_bytes(self) -> int:
        return sum(file.size for _, _, file in self.each())

    @property
    def revision(self) -> str:
        """The commits; of a set with one repository, its commit."""
        return "+".join(part.commit for part in self.parts)

    def each(self) -> Iterator[tuple[Pinned, str, File]]:
        """Every file: its repository, its path below the set's folder, and what it is to be."""
        for part in self.parts:
            for name, file in part.files.items():
                yield part, f"{part.folder}/{name}" if part.folder else name, file

    def to_json(self, **more: object) -> bytes:
        parts = [
            {
                "repo": part.repo,
                "folder": part.folder,
                "commit": part.commit,
                "files": {name: {"size": f.size, f.kind: f.digest} for name, f in part.files.items()},
            }
            for part in self.parts
        ]
        return json_bytes({"schema": SCHEMA, "set": self.name, "parts": parts} | more)

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest | None":
        """None if it is damaged. Raises BadInput if a later version wrote it."""
        try:
            found = json.loads(content)
            schema = int(found["schema"])
            if schema <= SCHEMA:
                parts = tuple(_part(part) for part in found["parts"])
                verified_at, unfit = str(found.get("verified_at", "")), found.get("unfit") is True
                return cls(str(found["set"]), parts, verified_at, unfit) if parts else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        raise BadInput(
            f"the model {found.get('set')} was fetched by a later version (schema {schema}); update this one"
        )


def read(folder: Path, name: str) -> Manifest | None:
    """The MARKER or PLAN of a set's folder; None if there is none, or a damaged one."""
    with disk_errors(folder / name):
        try:
            content = (folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    return Manifest.from_json(content)


def complete(manifest: Manifest, folder: Path) -> None:
    """Write the marker: all files are there and verified, on disk before it."""
    sync({folder, *(folder / part.folder for part in manifest.parts)})
    content = manifest.to_json(verified_at=timestamps.now())
    _write(folder / MARKER, content)
    sync({folder})
    (folder / PLAN).unlink(missing_ok=True)


def reopen(folder: Path) -> None:
    """Make a complete set an incomplete one that keeps its commits: the next `get` looks at every file."""
    with suppress(FileNotFoundError):
        (folder / MARKER).replace(folder / PLAN)
    sync({folder})


def condemn(manifest: Manifest, folder: Path) -> None:
    """Make it an incomplete set whose files are no model: the next `get` looks for other commits."""
    _write(folder / PLAN, manifest.to_json(unfit=True))
    (folder / MARKER).unlink(missing_ok=True)
    sync({folder})


def propose(manifest: Manifest, folder: Path) -> Manifest:
    """Make this the plan, unless another process was first; -> the plan that holds."""
    content = manifest.to_json()
    for _ in range(3):
        with suppress(FileExistsError):
            with (folder / PLAN).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return manifest
        if (found := read(folder, PLAN)) and found.name == manifest.name:
            return found
        (folder / PLAN).unlink(missing_ok=True)  # damaged, as its process was killed, or another set's
    return manifest


def sync(folders: set[Path]) -> None:
    """Have the names in these folders on disk. Windows keeps them so by itself."""
    if os.name == "nt":
        return
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(path: Path, content: bytes) -> None:
    with put_in_place(path, path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{NEW}")) as file:
        file.write(content)


def _part(found: Any) -> Pinned:
    commit, folder = str(found["commit"]), str(found["folder"])
    if not found["files"]:
        raise ValueError("no files")
    if not COMMIT.fullmatch(commit) or (folder and not FILE_NAME.fullmatch(folder)):
        raise ValueError("not a commit and a folder")
    return Pinned(
        str(found["repo"]), folder, commit, {name: _file(name, its) for name, its in found["files"].items()}
    )


def _file(name: str, found: Any) -> File:
    kind = "sha256" if "sha256" in found else "git_sha1"
    if not FILE_NAME.fullmatch(name):
        raise ValueError("not a file's name")
    return File(int(found["size"]), kind, str(found[kind]))
