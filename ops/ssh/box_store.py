"""Songs of a box without a bucket: its output folder as a read-only store over SFTP, and fetching from it."""

import stat
from pathlib import Path

import paramiko

from ops import fetch as fetches
from ops import ui
from ops.fetch import Fetched
from ops.settings import Settings
from ops.ssh import configure
from ops.ssh.box import Box
from worker.errors import BadInput, UserError
from worker.store.base import SCRATCH, Missing, Store, Stored

_LOST = (paramiko.SSHException, EOFError)
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
        self._sftp = box.sftp()

    def __enter__(self) -> "BoxStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._sftp.close()

    def list(self, prefix: str = "") -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = self._sftp.listdir_attr(f"{self._folder}/{folder}".rstrip("/"))
            except FileNotFoundError:
                continue
            except _LOST:
                raise self._lost() from None
            for entry in entries:
                key = f"{folder}{entry.filename}"
                if stat.S_ISDIR(entry.st_mode or 0) and key != SCRATCH:
                    folders.append(f"{key}/")
                elif stat.S_ISREG(entry.st_mode or 0) and key.startswith(prefix):
                    found[key] = Stored(entry.st_size or 0, None)
        return found

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        try:
            with self._sftp.open(f"{self._folder}/{key}", "rb") as file:
                file.prefetch()
                return file.read(), ""
        except FileNotFoundError:
            raise Missing(key) from None
        except _LOST:
            raise self._lost() from None

    def download(self, key: str, path: Path) -> None:
        try:
            self._sftp.get(f"{self._folder}/{key}", str(path))
        except FileNotFoundError:
            raise Missing(key) from None
        except _LOST:
            raise self._lost() from None

    def _lost(self) -> UserError:
        return UserError(
            f"the connection to {self._box.label} was lost; fetch again, what is here already is kept"
        )

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
