"""A worker's name on its box: a restarted worker gets it again, two live workers never share it.

    identity = take_identity(Path("~/.musicgen").expanduser(), "s3://bucket/prefix")
    identity.name      # an earlier worker of this name is dead
    identity.retire()  # no claim has this name any more: delete its files

An identity is a lock file. The operating system releases the lock when the process ends, however it
ends, so holding the lock proves that the previous holder is dead. The name is made from

* a random number stored beside the lock: other boxes and other folders have other numbers;
* the host name, the boot id and the process namespace: a disk image, a container image or a network
  volume may copy the number to other machines, whose locks are not visible here.

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

# More than anyone runs on one box: if none of them is free, locks do not work there.
MAX_IDENTITIES = 256
# A killed worker's files for an output that is no longer used. Its claims have expired long before.
_ABANDONED_S = 7 * 86400

_NUMBER_DIGITS = 32


class WorkerIdentity(NamedTuple):
    """A name in use. `name` and `digest` are unique among all live workers on all machines.

    `inherited`: an earlier worker had it and did not retire it, so it may have left claims.
    """

    host: str
    digest: str
    lock: FileLock | None
    inherited: bool = False

    @property
    def name(self) -> str:
        """`HOST-DIGEST`."""
        return f"{self.host}-{self.digest}"

    def leave(self) -> None:
        """Release it to the next worker, which may take over the claims of this name at once."""
        if self.lock:
            self.lock.release()

    def retire(self) -> None:
        """Delete its files. Call it when no claim has this name."""
        if self.lock:
            _remove(self.lock)


def take_identity(home: Path, output: str) -> WorkerIdentity:
    """Take the first free identity of this box for `output`. Each output has its own identities.

    If `home` cannot be written or locked, the identity is one that no worker gets again: then only the
    quick takeover after a restart is lost. Deletes other outputs' identities after a week without use.
    """
    folder = home / "seats" / hashlib.sha256(output.encode()).hexdigest()[:16]
    with suppress(OSError):
        _remove_abandoned(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(MAX_IDENTITIES):
            lock = _lock(folder / f"{number}.lock")
            with suppress(Timeout):
                lock.acquire()
                path = folder / f"{number}.id"
                inherited = path.exists()
                return _identity(_number(path), lock, inherited)
    return _identity(secrets.token_hex(_NUMBER_DIGITS // 2), None)


def _lock(path: Path) -> FileLock:
    """A lock of the operating system, with no fallback: other locks outlive a killed process."""
    return FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)


def _remove(lock: FileLock) -> None:
    """Delete the files of an identity whose lock is held, and release the lock."""
    path = Path(lock.lock_file)
    with suppress(OSError):
        path.with_suffix(".id").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):  # not empty: other identities
        path.parent.rmdir()


def _remove_abandoned(own: Path) -> None:
    """Delete other outputs' identities that no worker has taken for a week."""
    oldest_s = time.time() - _ABANDONED_S
    for path in own.parent.glob("*/*.lock"):
        with suppress(OSError, Timeout):
            if path.parent != own and path.stat().st_mtime < oldest_s:
                lock = _lock(path)
                lock.acquire()
                _remove(lock)


def _number(path: Path) -> str:
    """The number of an identity whose lock is held; drawn if there is none yet."""
    with suppress(FileNotFoundError):
        number = path.read_text("ascii", errors="replace")
        if len(number) == _NUMBER_DIGITS:  # else its writer died while writing
            return number
    number = secrets.token_hex(_NUMBER_DIGITS // 2)
    path.write_text(number, "ascii")
    return number


def _identity(number: str, lock: FileLock | None, inherited: bool = False) -> WorkerIdentity:
    host = socket.gethostname()
    # macOS and Windows have neither, and no containers that would share the other parts.
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    digest = hashlib.sha256("\x1f".join((number, host, boot, namespace)).encode()).hexdigest()
    return WorkerIdentity(host, digest[:16], lock, inherited)
