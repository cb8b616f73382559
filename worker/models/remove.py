"""Remove a model set: its marker first, so that it is at no moment complete and damaged, then its files.

Other people's files in its folder stay. Refuses a set that is being fetched. Whether a run uses it is the
caller's to know: remote/models.py asks the box.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from worker.errors import BadInput, UserError
from worker.models import find, manifest, places, sets
from worker.models.lease import TTL_S, Lease
from worker.models.manifest import MARKER, PLAN
from worker.models.sets import ModelSet
from worker.store.files import disk_errors

_POLL_S = 0.5


def remove(
    name: str, env: Mapping[str, str] = os.environ, *, tell: Callable[[str], None] = lambda _: None
) -> int:
    """Remove what there is of a set; -> the bytes that are free now. Raises BadInput if there is nothing."""
    wanted = sets.find(name)
    folder = places.folder_of(wanted, env)
    with disk_errors(folder):
        if not _is_there(wanted, folder):
            raise BadInput(f"there is nothing of the model {wanted.name} in {folder}; nothing was removed")
        lease = Lease(folder)
        with lease.renewed() if _take(lease, wanted, tell) else nullcontext():
            for name_of_state in (MARKER, PLAN):
                (folder / name_of_state).unlink(missing_ok=True)
                manifest.sync({folder})
            n_bytes = 0
            for path in find.files_of(wanted, folder):
                with suppress(FileNotFoundError):
                    n_bytes += path.lstat().st_size
                    path.unlink()
        for empty in (*(folder / part.folder for part in wanted.parts if part.folder), folder):
            with suppress(OSError):
                empty.rmdir()
    return n_bytes


def _is_there(wanted: ModelSet, folder: Path) -> bool:
    return bool(find.files_of(wanted, folder)) or (folder / MARKER).exists() or (folder / PLAN).exists()


def _take(lease: Lease, wanted: ModelSet, tell: Callable[[str], None]) -> bool:
    """Take the lease. One that has not changed for its time is a dead process's.

    False if nobody holds it and a full disk has no room for it: to remove is the way out of that.
    """
    try:
        _wait(lease, wanted, tell)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def _wait(lease: Lease, wanted: ModelSet, tell: Callable[[str], None]) -> None:
    last_s = time.monotonic() + TTL_S + 10
    waits = False
    while not lease.take():
        if lease.is_alive or time.monotonic() > last_s:
            raise UserError(f"the model {wanted.name} is being fetched by {lease.holder}; stop that first")
        if not waits:
            tell(f"looking for {TTL_S:g} s whether {lease.holder} is still fetching it")
        waits = True
        time.sleep(_POLL_S)
