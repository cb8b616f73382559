"""What a store of songs, records and reports is: objects under keys, behind one small interface.

    etag = store.create("claims/rain_5c0ffee0.json", b"mine")    # None: someone else was first

An object appears under its key whole or not at all, whenever the process dies. `create` and
`replace` are exact: of any number of threads and processes one wins (on S3, machines too).
What a user can cause is raised as UserError or BadInput, one line; a bad key is a ValueError.
Knows no song and no policy, and opens no store (open.py does). An S3 look-alike that ignores the
conditions of a PUT goes unnoticed unless `honours_conditions` is asked.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from worker.errors import UserError

# The one name in a folder that is no object: there during a write, then gone.
SCRATCH = ".scratch"

MAX_PART_BYTES = 255  # of a file name, nearly everywhere
MAX_KEY_BYTES = 900  # S3 takes 1024, with the prefix

# The same for every check, so that the next one removes what a killed one left.
PROBE_KEY = "claims/.probe"
_PROBE_TRIES = 5  # another check may remove it between our write and our read
_NOT_GIVEN_BACK = "{location} does not give back what was written; use another output"

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Missing(KeyError):
    """There is no object under this key."""


class Stored(NamedTuple):
    """One listed object: bytes, its ETag where the list has one (S3), and when it was last written."""

    size: int
    etag: str | None
    written_at: datetime | None = None  # UTC, by the store's clock


class Store(ABC):
    """Objects under keys: relative POSIX paths such as `records/rain_5c0ffee0.json`.

    An ETag is opaque and stands for the content: equal contents of a key may share it, so content
    that `replace` renews must change each time. `location` is what the user typed, normalised,
    for messages. Safe to share between threads.
    """

    location: str

    @abstractmethod
    def list(self, prefix: str = "") -> dict[str, Stored]:
        """Every object whose key starts with `prefix`, a plain string."""

    @abstractmethod
    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The content and its ETag. Raises Missing."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> str:
        """Store this content, whatever was there before; the new ETag."""

    @abstractmethod
    def create(self, key: str, content: bytes) -> str | None:
        """Store it only if the key is free; the new ETag, or None if it is taken.

        A call that raised Unreachable may have stored it. The same call again then says so: it
        returns the ETag as long as that content is there.
        """

    @abstractmethod
    def create_file(self, key: str, path: Path) -> str | None:
        """Like `create`, streamed from a file."""

    @abstractmethod
    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        """Store it only over the content with this ETag; the new one, or None if that is gone.

        After Unreachable as in `create`.
        """

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Write the object to a file, whole or not at all. Raises Missing."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; it is fine if there is none."""

    def read(self, key: str) -> bytes:
        """The content. Raises Missing."""
        return self.read_tagged(key)[0]

    def sha256(self, key: str) -> str:
        """Of the content, in hex. Raises Missing. Folder and S3 read it in pieces: a WAV may be large."""
        return hashlib.sha256(self.read(key)).hexdigest()

    def clock_skew_s(self) -> float | None:
        """Seconds this machine's clock was ahead of the store's at its last answer; None if not known."""
        return None

    def honours_conditions(self, key: str) -> bool:
        """True if `create` and `replace` refuse what they must.

        Tried on `key`, which belongs to the caller and is removed, before as well: a killed caller
        may have left it. Raises the UserError that any of its writes, reads and deletes would.
        """
        self.delete(key)
        try:
            etag = self.create(key, b"created")
            if not self._holds(key, b"created"):
                raise UserError(_NOT_GIVEN_BACK.format(location=self.location))
            if not etag or self.create(key, b"created again"):
                return False
            return bool(self.replace(key, b"replaced", etag)) and not self.replace(key, b"again", etag)
        finally:
            self.delete(key)

    def check_writable(self) -> None:
        """Write, read back and delete a probe. Raises the UserError that a real write would."""
        for _ in range(_PROBE_TRIES):
            self.write(PROBE_KEY, b"probe")
            try:
                held = self._holds(PROBE_KEY, b"probe")
            finally:
                self.delete(PROBE_KEY)
            if held:
                return
        raise UserError(_NOT_GIVEN_BACK.format(location=self.location))

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.read(key) == content
        except Missing:
            return False


def is_key(key: str) -> bool:
    """True if an object may be kept under this key, on every system."""
    parts = key.split("/")
    return (
        not CONTROL.search(key)
        # A drive, a stream or a folder on Windows, which also drops dots and spaces at the end.
        and ":" not in key
        and "\\" not in key
        and all(part and part == part.rstrip(". ") and len(part.encode()) <= MAX_PART_BYTES for part in parts)
        and len(key.encode()) <= MAX_KEY_BYTES
        and parts[0].casefold() != SCRATCH
    )


def checked(key: str) -> str:
    """The key itself. Raises ValueError if it is not valid: a bug in this project, not a user's error."""
    if not is_key(key):
        raise ValueError(f"not a key: {key!r}")
    return key


def json_bytes(content: Any) -> bytes:
    """How every JSON file is written: UTF-8, readable, a last newline."""
    return (json.dumps(content, ensure_ascii=False, indent=1, sort_keys=False) + "\n").encode()
