"""Songs of a box without a bucket: its output folder as a read-only store over SFTP, and fetching from it."""

import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import paramiko

from ops import fetch as fetches
from ops import ui
from ops.fetch import Fetched
from ops.settings import Settings
from ops.ssh import configure
from ops.ssh.box import Box
from ops.ssh.link import BROKEN, LinkLost
from worker.errors import BadInput, UserError
from worker.store.base import SCRATCH, Missing, Store, Stored

# sshd refuses the eleventh session of a connection, and one is for commands.
_MOST_SESSIONS = 4
_BLOCK = 1 << 20
_READ_ONLY = "the output folder of a box is read-only here"


def fetch(box: Box, settings: Settings, to: str) -> Fetched:
    """Fetch songs, records and reports from the box's own folder. Raises BadInput if they are in a bucket."""
    bucket, _ = configure.bucket_and_prefix(settings)
    if bucket:
        raise BadInput(f"the songs are in {settings.output_place}; fetch them there: inv fetch --to {to}")
    with BoxStore(box, f"{box.info.root}/output") as store:
        return fetches.fetch(store, Path(to), ui.say)


class BoxStore(Store):
    """Songs, records and reports in `folder` of the box, an absolute path. A `with` block closes it."""

    def __init__(self, box: Box, folder: str) -> None:
        self.location = f"{box.label}:{folder}"
        self._box = box
        self._folder = folder.rstrip("/")
        self._sessions = _Sessions(box.sftp, _MOST_SESSIONS)

    def __enter__(self) -> "BoxStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._sessions.close()

    def list(self, prefix: str = "") -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with self._session(folder) as sftp:
                    entries = sftp.listdir_attr(f"{self._folder}/{folder}".rstrip("/"))
            except Missing:
                continue
            for entry in entries:
                key = f"{folder}{entry.filename}"
                if stat.S_ISDIR(entry.st_mode or 0) and key != SCRATCH:
                    folders.append(f"{key}/")
                elif stat.S_ISREG(entry.st_mode or 0) and key.startswith(prefix):
                    found[key] = Stored(entry.st_size or 0, None)
        return found

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        return b"".join(self._blocks(key)), ""

    def download(self, key: str, path: Path) -> None:
        # What goes wrong with `path` is an OSError here, and no fault of the connection.
        with closing(self._blocks(key)) as blocks, path.open("wb") as copy:
            for block in blocks:
                copy.write(block)

    def _blocks(self, key: str) -> Generator[bytes, None, None]:
        with self._session(key) as sftp, sftp.open(f"{self._folder}/{key}", "rb") as file:
            file.prefetch()
            while block := file.read(_BLOCK):
                yield block

    @contextmanager
    def _session(self, key: str) -> Iterator[paramiko.SFTPClient]:
        """A session of its own for one thread. Raises Missing, or UserError for what goes wrong in it."""
        try:
            with self._sessions.one() as sftp:
                yield sftp
        except FileNotFoundError:
            raise Missing(key) from None
        except PermissionError:
            raise UserError(
                f"the login user may not read {self.location}/{key}; correct its permissions (fab shell)"
            ) from None
        except BROKEN as error:
            raise self._box.sftp_problem(error) from None

    def write(self, key: str, content: bytes) -> str:
        raise NotImplementedError(_READ_ONLY)

    def create(self, key: str, content: bytes) -> str | None:
        raise NotImplementedError(_READ_ONLY)

    def create_file(self, key: str, path: Path) -> str | None:
        raise NotImplementedError(_READ_ONLY)

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        raise NotImplementedError(_READ_ONLY)

    def delete(self, key: str) -> None:
        raise NotImplementedError(_READ_ONLY)


class _Sessions:
    """SFTP sessions that threads borrow: the answers of one that two threads use at once get mixed up."""

    def __init__(self, open_one: Callable[[], paramiko.SFTPClient], most: int) -> None:
        self._open_one = open_one
        self._permits = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._idle = [open_one()]
        self._n_open = 1

    @contextmanager
    def one(self) -> Iterator[paramiko.SFTPClient]:
        """A session for this block alone; one in which something went wrong is not used again."""
        sftp, usable = self._take(), False
        try:
            yield sftp
            usable = True
        except (FileNotFoundError, PermissionError):  # an answer like any other
            usable = True
            raise
        finally:
            with self._lock:
                if usable:
                    self._idle.append(sftp)
                else:
                    sftp.close()
                    self._n_open -= 1
            self._permits.release()

    def close(self) -> None:
        """End those that nobody has borrowed."""
        for sftp in self._idle:
            sftp.close()

    def _take(self) -> paramiko.SFTPClient:
        while True:
            self._permits.acquire()
            with self._lock:
                if self._idle:
                    return self._idle.pop()
                try:
                    opened = self._open_one()
                except UserError as error:
                    if isinstance(error, LinkLost) or not self._n_open:
                        self._permits.release()
                        raise
                    continue  # the server gives no more: this permit is never released
                self._n_open += 1
                return opened
