"""Files that huggingface_hub has in its cache already, taken into a set: verified, and as real files.

Its blobs are named by the same checksums as the hub's list of files. On one disk such a file is shared
(a hard link): neither side changes a file in place, and removing one leaves the other.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from worker.models.download import Source
from worker.models.manifest import NEW


def take(source: Source, target: Path, cache: Path) -> bool:
    """Have the file at `target`, if the cache has it and its checksum is right. Raises OSError."""
    for there in _candidates(source, cache):
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{NEW}")
        try:
            try:
                os.link(there, unfinished)
            except OSError:  # another disk, or one without hard links
                _copy(there, unfinished)
            if source.file.matches(unfinished):
                unfinished.replace(target)
                return True
        except FileNotFoundError:  # removed meanwhile
            continue
        finally:
            unfinished.unlink(missing_ok=True)
    return False


def _copy(there: Path, target: Path) -> None:
    with there.open("rb") as old, target.open("xb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def _candidates(source: Source, cache: Path) -> Iterator[Path]:
    """Real files of the right size: the blob, or where there are no links the snapshot's file."""
    repo = cache / f"models--{source.repo.replace('/', '--')}"
    for path in (repo / "blobs" / source.file.digest, repo / "snapshots" / source.commit / source.name):
        with suppress(OSError):
            real = path.resolve(strict=True)
            if real.is_file() and real.stat().st_size == source.file.size:
                yield real
