"""Put one finished song into the store: its record, then its WAV, whoever else makes the same song.

A crash between the two leaves a record without a song, which is made again from its checkpoint, and
never a song without its record. Of any number of workers with a song of one name, the first to create
the WAV keeps it. A record is created, or replaced on what was read, so a late worker overwrites
nothing that it has not seen: who wins makes sure that its own record is there last, and who loses
puts back what it has replaced.
"""

from pathlib import Path

from worker.songs.records import Damaged, Record, key_of
from worker.store.base import Missing, Store


class Publication:
    """One song on its way into a store. Call it until it does not raise.

    Each call asks anew what may have changed while it was waited for, its own doing included: the
    answer to an earlier request may have been lost after it had an effect.
    """

    def __init__(self, store: Store, record: Record, path: Path):
        self._store, self._record, self._path = store, record, path
        self._key, self._content = key_of(record.song), record.to_json()
        self._replaced: bytes | None = None  # the record that ours took the place of

    def __call__(self) -> bool:
        """True if the song in the store is this one; False if another worker's is, with its record."""
        while True:
            there, etag = self._read_record()
            if self._record.song in self._store.list(self._record.song):
                return self._settle()
            if there != self._content:
                if not self._put_record(self._content, etag):
                    continue  # someone else was quicker: look again
                self._replaced = there
            if self._store.create_file(self._record.song, self._path):
                self._own_record_last()
                return True

    def _settle(self) -> bool:
        """A song of this name is there: leave the record that fits it."""
        digest = self._store.sha256(self._record.song)
        there, etag = self._read_record()
        if digest == self._record.sha256:  # from an earlier call, or another worker's same bytes
            if there is not None and there != self._content and _describes(there, digest):
                return False
            self._own_record_last()
            return True
        if there == self._content:
            if self._replaced is not None and _describes(self._replaced, digest):
                self._put_record(self._replaced, etag)  # else its maker was quicker to put it back
            else:
                # A WAV of something else: our record is not its. Emptied, as a worker may delete none.
                self._put_record(b"", etag)
        return False

    def _own_record_last(self) -> None:
        while True:
            there, etag = self._read_record()
            if there == self._content or self._put_record(self._content, etag):
                return

    def _put_record(self, content: bytes, etag: str | None) -> bool:
        """True if it took the place of what was read, and of nothing else."""
        if etag is None:
            return self._store.create(self._key, content) is not None
        return self._store.replace(self._key, content, etag) is not None

    def _read_record(self) -> tuple[bytes | None, str | None]:
        try:
            return self._store.read_tagged(self._key)
        except Missing:
            return None, None


def _describes(content: bytes, digest: str) -> bool:
    """True if this record is that of a WAV with this SHA-256."""
    try:
        return Record.from_json(content).sha256 == digest
    except Damaged:
        return False
