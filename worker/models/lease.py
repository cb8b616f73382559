"""Who is fetching a set: a file in its folder, which its holder writes again every few seconds.

Saves work, and nothing depends on it: two that hold it at once both end with a complete set. So it needs no
locks, which some network disks grant to everyone. An observer takes it over when it has not changed for
`ttl_s` on the observer's own clock, or at once if its holder was a process of this machine that is gone.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker import timestamps
from worker.models.manifest import NEW
from worker.store.base import json_bytes
from worker.store.files import patiently
from worker.store.lease import elapsed_s

FILE = ".lease.json"
TTL_S = 60.0
_POLL_S = 0.5
# Of two that take a lease over at once, the one that wrote last has it.
_SETTLE_S = 0.05


class Lease:
    """The lease on one folder, for one holder."""

    def __init__(self, folder: Path, ttl_s: float = TTL_S, clock: Callable[[], float] = elapsed_s) -> None:
        self._path, self._ttl_s, self._clock = folder / FILE, ttl_s, clock
        self._owner = uuid.uuid4().hex
        self._count = 0
        # Someone else's: as it was seen first, and as it is, since when.
        self._first: bytes | None = None
        self._seen: tuple[bytes, float] | None = None

    def take(self) -> bool:
        """True if it is held now; False if someone else holds it. Raises OSError."""
        content = self._read()
        if content is None:
            return self._create()
        if self._seen is None or self._seen[0] != content:
            self._first = self._first or content
            self._seen = content, self._clock()
        if not _is_gone(content) and self._clock() - self._seen[1] < self._ttl_s:
            return False
        self._write()
        time.sleep(_SETTLE_S)
        return self._is_ours()

    @property
    def holder(self) -> str:
        """Someone else, as last seen: `process 12 on gpu-box since 2026-11-27T20:00:00Z`."""
        found = _parsed(self._seen[0]) if self._seen else {}
        return f"process {found.get('pid', '?')} on {found.get('host', '?')} since {found.get('since', '?')}"

    @property
    def is_alive(self) -> bool:
        """True if it has changed since it was first seen, so that its holder lives."""
        return self._seen is not None and self._seen[0] != self._first

    def renew(self) -> bool:
        """False if it is no longer held."""
        if not self._is_ours():
            return False
        self._write()
        return True

    def give_back(self) -> None:
        """Delete it, unless it is someone else's by now."""
        with suppress(OSError):
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew it in a thread while the block runs, then give it back."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._ttl_s / 6):
                with suppress(OSError):  # a full disk must not end a download; someone may take over
                    if not self.renew():
                        return

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5)
            self.give_back()

    def _create(self) -> bool:
        unfinished = self._unfinished()
        try:
            os.link(unfinished, self._path)
        except FileExistsError:
            return False
        except OSError:  # a disk without links
            patiently(lambda: unfinished.replace(self._path))
            return self._is_ours()
        finally:
            unfinished.unlink(missing_ok=True)
        return True

    def _write(self) -> None:
        unfinished = self._unfinished()
        try:
            patiently(lambda: unfinished.replace(self._path))
        finally:
            unfinished.unlink(missing_ok=True)

    def _unfinished(self) -> Path:
        self._count += 1
        path = self._path.with_name(f"{FILE}.{self._owner[:8]}{NEW}")
        content = {
            "owner": self._owner,
            "count": self._count,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": timestamps.now(),  # for people; never compared
        }
        try:
            path.write_bytes(json_bytes(content))
        except OSError:  # a full disk: an empty file may be there
            path.unlink(missing_ok=True)
            raise
        return path

    def _is_ours(self) -> bool:
        return _parsed(self._read() or b"").get("owner") == self._owner

    def _read(self) -> bytes | None:
        try:
            return patiently(self._path.read_bytes)
        except FileNotFoundError:
            return None


@contextmanager
def held(lease: Lease, tell: Callable[[str], None], is_over: Callable[[], bool]) -> Iterator[bool]:
    """Wait for the lease and hold it during the block. Yields False if meanwhile `is_over`."""
    waits = False
    while not lease.take():
        if is_over():
            yield False
            return
        if not waits:
            tell(f"it is being fetched already by {lease.holder}; waiting for that")
        waits = True
        time.sleep(_POLL_S)
    with lease.renewed():
        yield True


def _parsed(content: bytes) -> dict[str, object]:
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}


def _machine() -> str:
    """Where a process's number means the same: this host, or one container of it."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _is_gone(content: bytes) -> bool:
    """True if the holder was a process of this machine that no longer exists."""
    found = _parsed(content)
    pid = found.get("pid")
    if os.name == "nt" or found.get("machine") != _machine() or not isinstance(pid, int) or pid <= 0:
        return False  # on Windows, asking would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
