"""Whether a set is whole: `quick` in milliseconds before each use, `full` by every file's checksum.

Both change nothing, and a set without its marker is never whole. `check` takes the marker from a damaged set,
and writes into that of a whole one when it was.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from worker.amounts import count, size
from worker.errors import BadInput
from worker.models import manifest, places, sets
from worker.models.heartmula_tree import Unfit
from worker.models.manifest import MARKER, Manifest
from worker.models.sets import ModelSet
from worker.store.files import disk_errors

_LONGEST_HEADER_BYTES = 100_000_000


class Fault(NamedTuple):
    """What is wrong with one file or link. `path`: below the set's folder; "" for all of it."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}".lstrip()


class Checked(NamedTuple):
    """A set after `check`: whole if it has no faults.

    `unnoted`: why its marker could not be written; `unfit`: the fault is in the hub's own files; `code`: for
    a process to end with, 1 for files that differ, 2 where what is there is no model.
    """

    name: str
    folder: Path
    n_files: int
    n_bytes: int
    faults: list[Fault]
    unnoted: str = ""
    unfit: bool = False
    code: int = 0

    def summary(self) -> str:
        """The set as a line; each of `faults` is one of its own."""
        mark = f" (and still marked complete: {self.unnoted})" if self.unnoted else ""
        if self.unfit:
            return (
                f"{self.name} is no model that works{mark}, and every file is as the hub has it; remove it, "
                "and get it when the hub has another release"
            )
        if self.faults:
            files = count(len(self.faults), "file")
            return (
                f"{self.name} has {files} damaged or missing{mark}; get it again, which fetches these alone"
            )
        time = f"; the time could not be noted ({self.unnoted})" if self.unnoted else ""
        n_files = count(self.n_files, "file")
        return f"{self.name} is whole: {n_files}, {size(self.n_bytes)}, every checksum is right{time}"


def _quiet(done: int, total: int, path: str) -> None:
    pass


def quick(folder: Path) -> list[Fault]:
    """By the marker, every file's size, the lengths that weights state themselves, and no links anywhere."""
    found = manifest.read(folder, MARKER)
    if found is None:
        return [Fault(MARKER, "is missing: the set is not complete")]
    with disk_errors(folder):
        where = [Fault(path, "is a link, not a real file") for path in links(folder)]
        return [*where, *_by_size(folder, found)]


def full(folder: Path, progress: Callable[[int, int, str], None] = _quiet) -> list[Fault]:
    """`quick`, and the checksum of every file. `progress`: bytes done, bytes in all, and of which file."""
    found = manifest.read(folder, MARKER)
    if found is None:
        return quick(folder)
    faults = quick(folder)
    known, done = {fault.path for fault in faults}, 0
    for _, path, file in found.each():
        progress(done, found.n_bytes, path)
        with disk_errors(folder / path):
            if path not in known and not file.matches(folder / path):
                faults.append(Fault(path, "is damaged: its checksum is another"))
        done += file.size
    progress(done, found.n_bytes, "")
    return faults


def check(
    name: str, env: Mapping[str, str] = os.environ, progress: Callable[[int, int, str], None] = _quiet
) -> Checked:
    """`full` on a set, and what its files say of themselves, every weight read.

    A damaged one is complete no longer: `get` fetches what is wrong, and that alone. Nor is one whose files
    are the hub's own and no model. Raises BadInput for a set that is not complete on this machine.
    """
    wanted = sets.find(name)
    folder = places.folder_of(wanted, env)
    found = manifest.read(folder, MARKER)
    if found is None or found.name != wanted.name:
        raise BadInput(f"the model {wanted.name} is not complete in {folder}; get it first")
    faults, unnoted = full(folder, progress), ""
    wrong = _no_model(wanted, folder, bool(faults))
    unfit = bool(wrong and not faults)
    code = 2 if wrong else 1 if faults else 0
    if unfit:
        faults = [Fault("", wrong)]
    try:
        if unfit:
            manifest.condemn(found, folder)
        elif faults:
            manifest.reopen(folder)
        else:
            manifest.complete(found, folder)  # again, with the time
    except OSError as error:  # a full or read-only disk; what was read is known nevertheless
        unnoted = error.strerror or str(error)
    return Checked(wanted.name, folder, len(list(found.each())), found.n_bytes, faults, unnoted, unfit, code)


def _no_model(wanted: ModelSet, folder: Path, is_damaged: bool) -> str:
    """Why these files are no model; "" if they are, or nothing says so."""
    try:
        if wanted.whole:
            wanted.whole(folder, True)
    except Unfit as error:
        return error.what
    except BadInput:  # it cannot be told; the damage can
        if not is_damaged:
            raise
    return ""


def absent_weights(folder: Path) -> list[str]:
    """The weight files that an index in this folder names and that are not there."""
    names: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names |= set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return [index.name]
    return sorted(name for name in names if not (folder / name).is_file())


def links(folder: Path) -> list[str]:
    """Every link in the folder and below, as a path from there."""
    return [
        path.relative_to(folder).as_posix()
        for inside, folders, files in os.walk(folder)
        for path in (Path(inside, name) for name in (*folders, *files))
        if path.is_symlink()
    ]


def has_stated_length(path: Path) -> bool:
    """True if a safetensors file is as long as its own header says."""
    try:
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > min(n_bytes, _LONGEST_HEADER_BYTES):
                return False
            tensors = json.loads(file.read(header_bytes))
        ends = [its["data_offsets"][1] for name, its in tensors.items() if name != "__metadata__"]
        return bool(n_bytes == 8 + header_bytes + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
        return False


def _by_size(folder: Path, found: Manifest) -> Iterator[Fault]:
    for _, path, file in found.each():
        try:
            size = (folder / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            yield Fault(path, "is missing")
            continue
        if size != file.size:
            yield Fault(path, f"has {size} bytes instead of {file.size}")
        elif path.endswith(".safetensors") and not has_stated_length(folder / path):
            yield Fault(path, "is damaged: its header does not fit its length")
    for part in found.parts:
        for name in absent_weights(folder / part.folder):
            path = f"{part.folder}/{name}" if part.folder else name
            if name not in part.files:  # else it is named above
                yield Fault(path, "is missing: the index of the weights names it")
