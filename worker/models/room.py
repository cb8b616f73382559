"""Room for a download: asked of the disk, then tried; and what a full disk says.

A network volume's quota is in no figure of the disk; it shows when something is written. The whole size is
not reserved for that: where a disk cannot reserve, the C library writes into every block instead, which
takes as long as the download. So a bounded piece is written, which finds a quota that is used up. One that
ends in the middle of a download ends it in one line, and what has come is kept.
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from worker.amounts import size
from worker.errors import DiskFull
from worker.models import find
from worker.models.manifest import UNFINISHED
from worker.store.files import CHUNK_BYTES

PROBE_BYTES = 64 * CHUNK_BYTES


def check(folder: Path, n_bytes: int) -> None:
    """Raises DiskFull if the disk says that it has less room than this, and OSError if it takes no more."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise DiskFull(f"{size(n_bytes)} are to come and {size(free)} are free in {folder}")
    probe = folder / f".probe.{uuid.uuid4().hex[:8]}{UNFINISHED}"
    try:
        with probe.open("xb", buffering=0) as file:
            for _ in range(min(n_bytes, PROBE_BYTES) // CHUNK_BYTES):
                file.write(os.urandom(CHUNK_BYTES))  # a disk may compress zeros
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def full(reason: str, name: str, env: Mapping[str, str]) -> DiskFull:
    """The error of a full disk, with the other models that could be removed."""
    others = [
        f"{found.name} ({size(found.n_bytes)})"
        for found in find.inventory(env)
        if found.n_bytes and found.name != name
    ]
    removing = f"remove a model that you do not need: {', '.join(others)}" if others else "free space"
    return DiskFull(
        f"no room for the model {name}: {reason}; {removing}, or take a larger disk or volume, and run it "
        "again: what has come is kept"
    )
