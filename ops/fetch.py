"""Bring finished songs, their records and the reports from a store to a folder.

Only what is missing is downloaded, and every song is checked against its record's size and checksum. A
file that exists and differs is never overwritten: it is reported. Prints nothing: progress goes to `tell`.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.amounts import count, size
from worker.errors import BadInput, UserError
from worker.songs.records import Damaged, Record, read_all, song_of
from worker.songs.report import REPORT_KEY
from worker.store.base import Missing, Store
from worker.store.open import open_store


@dataclass
class Fetched:
    """The result of a fetch. `wrong`: song -> why it was not fetched."""

    new: list[str] = field(default_factory=list)
    had: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    n_bytes: int = 0

    def rows(self) -> list[dict[str, str]]:
        """A row for each song, as `inv fetch` shows it."""
        states = [*((song, "new") for song in self.new), *((song, "had it") for song in self.had)]
        return [{"song": song, "state": state} for song, state in sorted([*states, *self.wrong.items()])]

    def closing_line(self, folder: Path) -> str:
        """`2 new songs (11.5 MB) in album, 3 there before, 0 wrong`."""
        new = f"{count(len(self.new), 'new song')} ({size(self.n_bytes)})"
        return f"{new} in {folder}, {len(self.had)} there before, {len(self.wrong)} wrong"


def fetch(source: str | Store, folder: Path, tell: Callable[[str], None]) -> Fetched:
    """Fetch every finished song of `source` into `folder`, then the records and reports.

    Run it again to fetch what is in `wrong`. Raises BadInput when there is nothing to fetch.
    """
    store = open_store(source) if isinstance(source, str) else source
    target = open_store(str(folder))
    if store.location == target.location:
        raise BadInput(f"{folder} is where the songs are already; give another folder")
    stored = store.list()
    if not stored:
        raise BadInput(
            f"there is nothing in {store.location}; is that the right output, and is a song finished?"
        )
    target.check_writable()
    folder = Path(target.location)  # with ~ expanded

    fetched = Fetched()
    finished = {song: record for song, record in read_all(store, stored).items() if song in stored}
    if not finished:
        tell(f"no song in {store.location} is finished")
    for n, (song, record) in enumerate(sorted(finished.items()), start=1):
        if isinstance(record, Damaged):
            fetched.wrong[song] = f"its record is damaged ({record})"
            continue
        path = folder / song
        if not path.exists():
            tell(f"[{n}/{len(finished)}] {song}, {size(record.n_bytes)}")
            problem = _bring(store, song, record, path)
        else:
            problem = None if _is(path, record) else f"{path} is a different file; move it away, fetch again"
            fetched.had += [] if problem else [song]
        if problem:
            fetched.wrong[song] = problem
            continue
        if song not in fetched.had:
            fetched.new.append(song)
            fetched.n_bytes += record.n_bytes

    there = target.list()
    for key, entry in stored.items():
        # Every run rewrites the report, and its size may stay the same.
        if key.startswith("runs/"):
            wanted = key not in there or there[key].size != entry.size
        else:
            of = song_of(key)
            wanted = key in (REPORT_KEY, "report.html") or of in fetched.new
            wanted = wanted or (of in fetched.had and key not in there)
        if wanted:
            with suppress(Missing):  # it has gone since the listing
                target.write(key, store.read(key))
    return fetched


def _bring(store: Store, song: str, record: Record, path: Path) -> str | None:
    """Download one song, under its own name only when it is right; -> what is wrong with it."""
    partial = path.with_name(f"{song}.partial")
    try:
        store.download(song, partial)
        if not _is(partial, record):
            return "its size or checksum differs from its record; fetch again"
        partial.rename(path)
    except Missing:
        return "it was deleted during the fetch"
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); free space or permissions") from None
    finally:
        partial.unlink(missing_ok=True)
    return None


def _is(path: Path, record: Record) -> bool:
    """True if the file has the record's size and checksum."""
    if path.stat().st_size != record.n_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
