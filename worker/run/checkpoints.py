"""Unfinished songs, saved so that another worker, on another machine too, can resume them.

`checkpoints/NAME_HASH.safetensors` in the store, the newest of each song, written by a thread beside
generation. What the store does not take, or not in time, is in a folder of this machine, where the
next run looks too. Only a song whose claim is in time goes to the store: another worker may have
resumed the others. A finished song's tokens stay, in `tokens/NAME_HASH.safetensors`: if its WAV is lost,
it is decoded again and not generated. Does not decide which songs may be resumed: the engine does.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from worker.amounts import size
from worker.engine import Unfinished
from worker.errors import BadInput, UserError
from worker.run.claims import Claims, claim_key
from worker.run.context import RunContext
from worker.songs.checkpoint_file import (
    OtherSettings,
    Unusable,
    checkpoint_key,
    from_bytes,
    to_bytes,
    tokens_key,
)
from worker.songs.maker import START_OVER
from worker.store.base import Missing, Store

# A folder has written within this: the checkpoint is there before generation continues. A bucket may
# not, and then finishes beside it.
_GRACE_S = 0.05
_READERS = 8
# How long the checkpoint of a song that is on no list stays.
_FORGOTTEN = timedelta(days=30)


class Checkpoints:
    """The checkpoints of one run. Safe to share between threads. Close it to be sure of what is saved."""

    def __init__(self, run: RunContext, claims: Claims):
        self._store, self._spare, self._stores, self._claims = run.store, run.spare, run.stores, claims
        self._note, self._start_over = run.observer.note, run.request.start_over
        self._changed = threading.Condition()
        self._waiting: dict[str, Unfinished] = {}
        self._writing: tuple[str, Unfinished] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
        self._thread.start()

    def load(self, stem: str, check: Callable[[Unfinished], None]) -> Unfinished | None:
        """The song as it was left, if `check` accepts it. A damaged checkpoint is reported and removed.

        Without a checkpoint it is whole if its tokens were kept. Raises OtherSettings if it was begun with
        other settings, unless the run is to start over.
        """
        found: list[Unfinished] = []
        for store in self._stores:
            try:
                song = from_bytes(store.read(checkpoint_key(stem)))
                check(song)
                found.append(song)
            except Missing:
                continue
            except OtherSettings as error:
                if not self._start_over:
                    raise
                self._drop(store, stem, f"it was begun with {error}")
            except Unusable as error:
                self._drop(store, stem, str(error))
            except UserError:
                if store is self._store:
                    raise  # the folder of this machine may be away: it is a spare
        return max(found, key=lambda song: song.n_made, default=None) or self._kept(stem, check)

    def save(self, song: Unfinished) -> None:
        """Replace what is saved of a song by how it stands now. Hardly waits for the store."""
        stem = _stem(song)
        with self._changed:
            self._waiting[stem] = song
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_pending(stem), _GRACE_S)

    def save_locally(self, songs: Sequence[Unfinished] = ()) -> None:
        """Put these songs, and whatever the store has not taken yet, on this machine's disk, now.

        They go to the store as well; once they are there the local copies go.
        """
        with self._changed:
            pending = dict([self._writing] if self._writing else []) | self._waiting
        left = pending | {_stem(song): song for song in songs}
        if self._spare:
            for stem, song in left.items():
                self._write(stem, song, [self._spare])
        with self._changed:
            self._waiting |= {_stem(song): song for song in songs}
            self._changed.notify_all()

    def remove(self, stem: str) -> None:
        """The song is done: it needs no checkpoint any more."""
        with self._changed:
            self._waiting.pop(stem, None)
            self._changed.wait_for(lambda: not self._is_pending(stem))
        self._store.delete(checkpoint_key(stem))
        if self._spare:
            with suppress(UserError):  # it may be away; the next run tidies
                self._spare.delete(checkpoint_key(stem))

    def keep(self, song: Unfinished) -> None:
        """The song is in the store: its tokens stay there. It is none the worse if the store refuses them."""
        stem = _stem(song)
        try:
            self._store.write(tokens_key(stem), to_bytes(song))
        except UserError as error:
            self._note("tokens-failed", f"the tokens of {stem} are not kept: {error}")

    def close(self, timeout_s: float) -> bool:
        """Wait until everything is in the store, at most this long; True if it is."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self.save_locally()
        return False

    def tokens_of(self, stem: str) -> Unfinished | None:
        """A finished song as its tokens were kept."""
        try:
            return from_bytes(self._store.read(tokens_key(stem)))
        except (Missing, Unusable, OtherSettings):
            return None

    def _kept(self, stem: str, check: Callable[[Unfinished], None]) -> Unfinished | None:
        song = self.tokens_of(stem)
        try:
            if song:
                check(song)
            return song
        except (OtherSettings, Unusable):
            return None

    def _is_pending(self, stem: str) -> bool:
        return stem in self._waiting or (self._writing is not None and self._writing[0] == stem)

    def _drop(self, store: Store, stem: str, why: str) -> None:
        self._note("checkpoint-unusable", f"{stem} starts over: {why}", song=f"{stem}.wav")
        with suppress(UserError):
            store.delete(checkpoint_key(stem))

    def _write_all(self) -> None:
        for stem, song in self._next():
            try:
                in_time = self._claims.in_time(stem) or self._is_still_ours(stem)
                if not in_time:
                    self._note("claim-lost", f"another worker may have {stem}: not saved in the store")
                self._write(stem, song, self._stores if in_time else self._stores[1:])
            except Exception as error:  # whatever it is, the next one may be saved
                self._note("checkpoint-failed", f"no checkpoint of {stem}: {type(error).__name__}: {error}")
            finally:
                with self._changed:
                    self._writing = None
                    self._changed.notify_all()

    def _is_still_ours(self, stem: str) -> bool:
        """Asked only where there is no folder of this machine: what is not saved now would be lost."""
        if self._spare:
            return False
        try:
            return self._claims.renew(stem)
        except UserError:
            return False

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
        """Into the first of these stores that takes it."""
        content, began = to_bytes(song), time.monotonic()
        for store in stores:
            try:
                store.write(checkpoint_key(stem), content)
            except UserError as error:
                self._note("checkpoint-failed", f"no checkpoint of {stem} in {store.location}: {error}")
                continue
            if store is self._store and self._spare:
                with suppress(UserError):
                    self._spare.delete(checkpoint_key(stem))
            self._note(
                "checkpoint",
                f"saved {stem} as it stands ({size(len(content))})",
                song=song.song.key,
                frame=song.n_made,
                n_bytes=len(content),
                took_s=round(time.monotonic() - began, 3),
                place=store.location,
            )
            return


def refuse_other_settings(
    stores: Sequence[Store], stems: Iterable[str], check: Callable[[Unfinished], None]
) -> None:
    """Before the first song is begun: raise BadInput if one of these was begun with other settings.

    A checkpoint holds paid work, so a wrong flag must not replace it. `stores`: the run's, then the spare
    folder, which may be unreadable: then no checkpoint is resumed from there either.
    """
    wanted = {checkpoint_key(stem): stem for stem in stems}

    def difference(store: Store, key: str) -> str | None:
        try:
            check(from_bytes(store.read(key)))
        except OtherSettings as error:
            return str(error)
        except (Missing, Unusable):
            pass  # gone since, or damaged: it starts over when its turn comes
        return None

    def differences(store: Store) -> dict[str, str]:
        keys = [key for key in store.list("checkpoints/") if key in wanted]
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda key: difference(store, key), keys)
            return {wanted[key]: text for key, text in zip(keys, found, strict=True) if text}

    for store in stores:
        try:
            differs = differences(store)
        except UserError:
            if store is stores[0]:
                raise
            continue
        if differs:
            stem, text = next(iter(differs.items()))
            others = f" and {len(differs) - 1} more" if len(differs) > 1 else ""
            raise BadInput(
                f"{stem}{others} was begun with {text}; use those settings to resume it, "
                f"or {START_OVER} to begin it again"
            )


def tidy(stores: Iterable[Store], done_stems: Iterable[str], listed_stems: Iterable[str]) -> None:
    """Remove what killed workers have left of songs that are done, and what nobody asks for any more.

    The checkpoint of a song that is not on this list may be another list's paid work: it goes when
    nobody has written it for a month.
    """
    done = list(done_stems)
    left = {checkpoint_key(stem) for stem in done} | {claim_key(stem) for stem in done}
    listed = {checkpoint_key(stem) for stem in listed_stems}
    forgotten_since = datetime.now(UTC) - _FORGOTTEN
    for store in stores:
        with suppress(UserError):  # it is in nobody's way
            for key in left.intersection(store.list("claims/")):
                store.delete(key)
            for key, stored in store.list("checkpoints/").items():
                is_old = stored.written_at is not None and stored.written_at < forgotten_since
                if key in left:
                    _keep_whole(store, key)
                if key in left or (is_old and key not in listed):
                    store.delete(key)


def _keep_whole(store: Store, key: str) -> None:
    """The tokens of a song whose worker was killed after it had stored the WAV."""
    with suppress(Missing, Unusable, OtherSettings):
        content = store.read(key)
        song = from_bytes(content)
        if song.n_made == song.tokens.shape[1]:
            store.create(tokens_key(_stem(song)), content)


def _stem(song: Unfinished) -> str:
    return song.song.key.removesuffix(".wav")
