"""Unfinished songs, kept so that another worker, on another machine too, can go on with them.

`checkpoints/NAME_HASH.safetensors` in the store, the newest of each song. Written by a thread of
its own beside generation. What the store does not take is kept in a folder of this machine, where
the next run looks too: a song that was paid for is not dropped because a bucket did not answer.
Does not decide which songs may be gone on with: the engine does.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from worker.engine import Unfinished
from worker.errors import UserError
from worker.songs.checkpoint_file import Unusable, from_bytes, to_bytes
from worker.store.base import Missing, Store

# A folder has written within this: the checkpoint is there before generation goes on. A bucket may
# not, and then finishes beside it.
_GRACE_S = 0.05


def key_of(stem: str) -> str:
    """Where the checkpoint of NAME_HASH lies."""
    return f"checkpoints/{stem}.safetensors"


class Checkpoints:
    """The checkpoints of one run. Safe to share between threads. Close it to be sure of what is saved.

    `spare`: a folder on this machine for what `store` does not take; None if `store` is one.
    """

    def __init__(self, store: Store, spare: Store | None, note: Callable[..., None]):
        self._stores = [store] if spare is None else [store, spare]
        self._note = note
        self._changed = threading.Condition()
        self._waiting: dict[str, Unfinished] = {}
        self._writing: tuple[str, Unfinished] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
        self._thread.start()

    def load(self, stem: str, check: Callable[[Unfinished], None]) -> Unfinished | None:
        """The song as it was left, if `check` accepts it; what is unusable is said, and removed."""
        found: list[Unfinished] = []
        for store in self._stores:
            try:
                song = from_bytes(store.read(key_of(stem)))
                check(song)
                found.append(song)
            except Missing:
                continue
            except Unusable as error:
                self._note("checkpoint-unusable", f"{stem} starts over: {error}", song=f"{stem}.wav")
                with suppress(UserError):
                    store.delete(key_of(stem))
        return max(found, key=lambda song: song.n_made, default=None)

    def save(self, song: Unfinished) -> None:
        """Keep a song as it stands, instead of what was kept of it. Hardly waits for the store."""
        stem = song.song.key.removesuffix(".wav")
        with self._changed:
            self._waiting[stem] = song
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_pending(stem), _GRACE_S)

    def remove(self, stem: str) -> None:
        """The song is done: it needs no checkpoint any more."""
        with self._changed:
            self._waiting.pop(stem, None)
            self._changed.wait_for(lambda: not self._is_pending(stem))
        for store in self._stores:
            store.delete(key_of(stem))

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is saved, at most this long; True if it is.

        What the store has not taken by then goes to the spare.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._changed:
            left = dict([self._writing] if self._writing else []) | self._waiting
            self._waiting.clear()
        for stem, song in left.items():
            self._write(stem, song, self._stores[1:])
        return False

    def _is_pending(self, stem: str) -> bool:
        return stem in self._waiting or (self._writing is not None and self._writing[0] == stem)

    def _write_all(self) -> None:
        for stem, song in self._next():
            try:
                self._write(stem, song, self._stores)
            finally:
                with self._changed:
                    self._writing = None
                    self._changed.notify_all()

    def _next(self) -> Iterator[tuple[str, Unfinished]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                stem = next(iter(self._waiting))
                song = self._waiting.pop(stem)
                self._writing = stem, song
            yield stem, song

    def _write(self, stem: str, song: Unfinished, stores: Sequence[Store]) -> None:
        content, began = to_bytes(song), time.monotonic()
        for store in stores:
            try:
                store.write(key_of(stem), content)
            except UserError as error:
                self._note("checkpoint-failed", f"no checkpoint of {stem} in {store.location}: {error}")
                continue
            self._note(
                "checkpoint",
                f"saved {stem} as it stands ({len(content) / 1000:.0f} kB)",
                song=song.song.key,
                frame=song.n_made,
                n_bytes=len(content),
                took_s=round(time.monotonic() - began, 3),
                place=store.location,
            )
            return
