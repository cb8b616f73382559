"""A worker's seat on its box: a name that a restarted worker gets again, and no two live ones share.

    seat = take_seat(Path("~/.musicgen").expanduser(), "s3://bucket/prefix")
    seat.name      # whoever had this name before is dead
    seat.leave()

A seat is a file that the operating system keeps locked for as long as its process lives, however that
ends, so sitting there proves that the one before has gone. The name is made of

* a random number kept beside the lock: other boxes and other folders have other numbers;
* the host's name, the kernel's boot and the process namespace: a disk image, a container image or a
  network volume may carry the number to other machines, whose locks are not seen here.

After a reboot or in a new container the names are new.
"""

import hashlib
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

# Nobody runs so many workers on one box: where no seat is free among them, locks do not work.
MAX_SEATS = 256

_NUMBER_DIGITS = 32


class Seat(NamedTuple):
    """A seat that is taken. `name` and `digest` are unique among all live workers, everywhere."""

    host: str
    digest: str
    lock: FileLock | None

    @property
    def name(self) -> str:
        """For people too."""
        return f"{self.host}-{self.digest}"

    def leave(self) -> None:
        """Free it for the next."""
        if self.lock:
            self.lock.release()


def take_seat(home: Path, place: str) -> Seat:
    """The first free seat of this box for `place`, so that workers for other places do not shift it.

    Where `home` cannot be written or locked, a seat that nobody gets again. Never raises for that:
    all that is lost is the quick restart.
    """
    folder = home / "seats" / hashlib.sha256(place.encode()).hexdigest()[:16]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(MAX_SEATS):
            # A lock of the operating system or none: others outlive a process that is killed.
            lock = FileLock(
                folder / f"{number}.lock",
                blocking=False,
                thread_local=False,
                fallback_to_soft=False,
                preserve_lock_file=True,
            )
            with suppress(Timeout):
                lock.acquire()
                return _seat(_number(folder / f"{number}.id"), lock)
    return _seat(secrets.token_hex(_NUMBER_DIGITS // 2), None)


def _number(path: Path) -> str:
    """The number of a seat that we hold, made when there is none."""
    with suppress(FileNotFoundError):
        number = path.read_text("ascii", errors="replace")
        if len(number) == _NUMBER_DIGITS:  # else its writer died before it could use it
            return number
    number = secrets.token_hex(_NUMBER_DIGITS // 2)
    path.write_text(number, "ascii")
    return number


def _seat(number: str, lock: FileLock | None) -> Seat:
    host = socket.gethostname()
    # Both are missing on macOS and Windows, where there are no containers to tell apart.
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    told_apart = hashlib.sha256("\x1f".join((number, host, boot, namespace)).encode()).hexdigest()
    return Seat(host, told_apart[:16], lock)
