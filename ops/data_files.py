"""The files of a folder of training data, and how they differ from those on a box.

A link counts as what it leads to. Files differ by size; of the same size and another time they are to be
compared by checksum. Changes nothing and knows nothing of a connection.
"""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.errors import BadInput


@dataclass(frozen=True)
class DataFile:
    """One file. `path`: below the folder, with slashes. `mtime`: whole seconds, as SFTP has them."""

    path: str
    n_bytes: int
    mtime: int


@dataclass(frozen=True)
class Differences:
    """What a sync has to do. `to_compare`: may be the same; `extra`: only on the box."""

    to_send: list[DataFile]
    to_compare: list[DataFile]
    unchanged: list[DataFile]
    extra: list[DataFile]


def files_in(folder: Path) -> dict[str, DataFile]:
    """Every file by its path. Raises BadInput if there is none, or for one that cannot be sent."""
    if not folder.exists():
        raise BadInput(f"there is no folder {folder}; give the folder with the training's data")
    if not folder.is_dir():
        raise BadInput(f"{folder} is a file; give the folder that it is in")
    found = {}
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()
            entry = path.stat()
        except UnicodeEncodeError:
            raise BadInput(f"{name!a} in {folder} is not UTF-8; rename it") from None
        except OSError as error:
            raise BadInput(f"cannot read {path} ({error.strerror}); correct or remove it") from None
        if not stat.S_ISREG(entry.st_mode):
            raise BadInput(f"{path} is neither a file nor a folder; remove it")
        if not os.access(path, os.R_OK):
            raise BadInput(f"you may not read {path}; correct its permissions")
        found[name] = DataFile(name, entry.st_size, int(entry.st_mtime))
    if not found:
        raise BadInput(f"there is no file in {folder}; give the folder with the training's data")
    return found


def compare(
    here: Mapping[str, DataFile], there: Mapping[str, DataFile], unverified: Collection[str] = ()
) -> Differences:
    """`unverified`: files that were sent, and that nobody has compared since."""
    to_send, to_compare, unchanged = [], [], []
    for path, file in here.items():
        other = there.get(path)
        if other is None or other.n_bytes != file.n_bytes:
            to_send.append(file)
        elif other.mtime != file.mtime or path in unverified:
            to_compare.append(file)
        else:
            unchanged.append(file)
    return Differences(to_send, to_compare, unchanged, [there[path] for path in there if path not in here])


def batches(files: Collection[DataFile], n_bytes: int, n_files: int) -> Iterator[list[DataFile]]:
    """The files in groups of at most so many, and of at most so many bytes unless one alone is larger."""
    batch: list[DataFile] = []
    size = 0
    for file in files:
        if batch and (size + file.n_bytes > n_bytes or len(batch) == n_files):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.n_bytes
    if batch:
        yield batch


def total(files: Collection[DataFile]) -> int:
    """Their bytes."""
    return sum(file.n_bytes for file in files)


def _paths(folder: Path) -> Iterator[Path]:
    def cannot(error: OSError) -> None:
        raise BadInput(f"cannot read {error.filename} ({error.strerror}); correct its permissions")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=cannot):
        real = Path(place).resolve()
        for name in folders:
            link = Path(place, name)
            if link.is_symlink() and link.resolve() in (real, *real.parents):
                raise BadInput(f"{link} is a link to a folder that it is in; remove it")
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))
