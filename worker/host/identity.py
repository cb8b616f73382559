"""A worker's identity on its box: a name that a restarted worker gets again, and no two live ones share.

    identity = take_identity(Path("~/.musicgen").expanduser(), "s3://bucket/prefix")
    identity.name      # whoever had this name before is dead
    identity.retire()  # nothing is claimed in this name any more: its files go

An identity is a file that the operating system keeps locked for as long as its process lives, however
that ends, so holding the lock proves that the holder before has gone. The name is made of

* a random number kept beside the lock: other boxes and other folders have other numbers;
* the host's name, the kernel's boot and the process namespace: a disk image, a container image or a
  network volume may carry the number to other machines, whose locks are not seen here.

After a reboot or in a new container the names are new.
"""

import hashlib
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

# Nobody runs so many workers on one box: where none is free among them, locks do not work.
MAX_IDENTITIES = 256
# A killed worker's files, for an output that nobody uses any more. Its claims ran out long ago.
_ABANDONED_S = 7 * 86400

_NUMBER_DIGITS = 32


class WorkerIdentity(NamedTuple):
    """A name that is taken. `name` and `digest` are unique among all live workers, everywhere."""

    host: str
    digest: str
    lock: FileLock | None

    @property
    def name(self) -> str:
        """For people too."""
        return f"{self.host}-{self.digest}"

    def leave(self) -> None:
        """Free it for the next worker, which may take back at once what is claimed in this name."""
        if self.lock:
            self.lock.release()

    def retire(self) -> None:
        """Remove its files: nothing is claimed in this name."""
        if self.lock:
            _remove(self.lock)


def take_identity(home: Path, place: str) -> WorkerIdentity:
    """The first free identity of this box for the output `place`, so that other outputs do not shift it.

    Where `home` cannot be written or locked, one that nobody gets again. Never raises for that: all
    that is lost is the quick restart. What killed workers have left of other outputs goes in time.
    """
    folder = home / "seats" / hashlib.sha256(place.encode()).hexdigest()[:16]
    with suppress(OSError):
        _remove_abandoned(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(MAX_IDENTITIES):
            lock = _lock(folder / f"{number}.lock")
            with suppress(Timeout):
                lock.acquire()
                return _identity(_number(folder / f"{number}.id"), lock)
    return _identity(secrets.token_hex(_NUMBER_DIGITS // 2), None)


def _lock(path: Path) -> FileLock:
    """A lock of the operating system or none: others outlive a process that is killed."""
    return FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)


def _remove(lock: FileLock) -> None:
    """The files of an identity whose lock is held. Who waits for the lock sees that it lost its name."""
    path = Path(lock.lock_file)
    with suppress(OSError):
        path.with_suffix(".id").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):  # others are there
        path.parent.rmdir()


def _remove_abandoned(ours: Path) -> None:
    """The identities of other outputs that nobody has taken for a week."""
    oldest_s = time.time() - _ABANDONED_S
    for path in ours.parent.glob("*/*.lock"):
        with suppress(OSError, Timeout):
            if path.parent != ours and path.stat().st_mtime < oldest_s:
                lock = _lock(path)
                lock.acquire()
                _remove(lock)


def _number(path: Path) -> str:
    """The number of an identity that we hold, made when there is none."""
    with suppress(FileNotFoundError):
        number = path.read_text("ascii", errors="replace")
        if len(number) == _NUMBER_DIGITS:  # else its writer died before it could use it
            return number
    number = secrets.token_hex(_NUMBER_DIGITS // 2)
    path.write_text(number, "ascii")
    return number


def _identity(number: str, lock: FileLock | None) -> WorkerIdentity:
    host = socket.gethostname()
    # Both are missing on macOS and Windows, where there are no containers to tell apart.
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    told_apart = hashlib.sha256("\x1f".join((number, host, boot, namespace)).encode()).hexdigest()
    return WorkerIdentity(host, told_apart[:16], lock)
