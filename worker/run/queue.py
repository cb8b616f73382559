"""Which song next: those that no other worker has, from where they were left.

A song is claimed when the engine has room for it, looked for in the store once it is claimed, and
resumed from its checkpoint. Those that others have are waited for at the end, and taken over when they
are left; so are those that continue a song which is not finished yet. Does not generate, and does not
know what becomes of a song.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from worker import timestamps
from worker.amounts import count, duration
from worker.engine import Abandoned, Engine, Song, Unfinished
from worker.errors import Unreachable
from worker.run.checkpoints import Checkpoints
from worker.run.claims import Claims
from worker.run.context import RunContext
from worker.run.continued_audio import encoded
from worker.run.observer import Begun
from worker.songs.checkpoint_file import OtherSettings, Unusable
from worker.songs.job import Job
from worker.store.retry import Retry, TimedOut, answer

# How often to look whether the songs that others have in progress are done.
_LOOK_EVERY_S = 5.0
# How long songs in progress are held up by a store that is asked for the next one.
_ASK_S = 10.0
# How often the tokens of a finished song are looked for before a song that continues it fails.
_LOOKS_FOR_TOKENS = 2

Result = TypeVar("Result")


class _NotYet(Exception):
    """The song that this one continues has no tokens yet."""


def song_of(job: Job) -> Song:
    """What an engine is asked for."""
    return Song(job.song, job.prompt, job.seconds, job.seed, job.lyrics_text)


class SongQueue:
    """The songs of one run that are still to be given to an engine."""

    def __init__(self, run: RunContext, jobs: Sequence[Job], claims: Claims, checkpoints: Checkpoints):
        self._run, self._claims, self._checkpoints = run, claims, checkpoints
        self._waiting = list(jobs)  # not tried yet
        self._others: list[Job] = []  # another worker has them
        self._followers: list[Job] = []  # they continue songs whose tokens are not there yet
        self._looks = Counter[str]()  # for these tokens, by follower
        self._in_progress: set[str] = set()  # given to the engine, which has not given them back
        self.begun: dict[str, Begun] = {}

    @property
    def has_untried(self) -> bool:
        """True if songs wait that nobody is known to have: the store did not answer in time."""
        return bool(self._waiting)

    @property
    def has_followers(self) -> bool:
        """True if songs wait for the tokens of those that they continue."""
        return bool(self._followers)

    def songs(self, engine: Engine) -> Iterator[Song | Unfinished]:
        """The songs that are this run's, each claimed when the engine has room for it."""
        while self._waiting and not self._run.interruption.no_new_songs:
            job = self._waiting.pop(0)
            try:
                if not self._claim(job):
                    self._others.append(job)
                    continue
                if self._is_there(job):  # asked once it is claimed: now it cannot change any more
                    self.release(job)
                    self._run.observer.made_elsewhere(job.song)
                    continue
                song = self._begin(job, engine)
            except _NotYet:
                self._followers.append(job)
                self.release(job)
                continue
            except Unusable as error:
                self._run.observer.failed(job.song, f"it cannot be continued: {error}")
                self.release(job)
                continue
            except (TimedOut, Abandoned):
                self._waiting.insert(0, job)
                return
            except OtherSettings as error:
                # Refused before the run began (checkpoints.refuse_other_settings), so it came later.
                self._run.observer.failed(job.song, f"it was begun with {error}")
                self.release(job)
                continue
            self._in_progress.add(job.song)
            yield song

    def given_back(self, song: str) -> None:
        """The engine is done with it."""
        self._in_progress.discard(song)

    def all_given_back(self) -> None:
        """The engine has ended."""
        self._in_progress.clear()

    def again(self, jobs: Iterable[Job]) -> None:
        """Give them to the next engine."""
        self._waiting += jobs

    def start_over(self, job: Job) -> None:
        """Remove its checkpoint, if the store answers; else it is resumed from there."""
        with suppress(TimedOut):
            self._ask(lambda: self._checkpoints.remove(job.stem))

    def release(self, job: Job) -> None:
        """Leave it to others."""
        with suppress(TimedOut):  # it runs out by itself
            self._ask(lambda: self._claims.release(job.stem))

    def wait_for_others(self, meanwhile: Callable[[], None]) -> bool:
        """Until a song can be taken over or continued: True; False if there is none to wait for."""
        reported = False
        while (self._others or self._followers) and not self._run.interruption.no_new_songs:
            meanwhile()
            try:
                there = [job for job in self._others if self._is_there(job)]
                for job in there:
                    self._run.observer.made_elsewhere(job.song)
                self._others = [job for job in self._others if job not in there]
                if any(self._claim(job) for job in self._others):
                    self._waiting, self._others = self._others, []
                    return True
                if self._take_up_followers():
                    return True
            except TimedOut:
                return False
            if self._others and not reported:
                reported = True
                self._run.observer.note(
                    "waiting",
                    f"waiting for {count(len(self._others), 'song')} that other workers have in progress; "
                    f"one that gives no sign of life for {duration(self._claims.ttl_s)} is replaced",
                    songs=[job.song for job in self._others],
                )
            if self._others:
                again_s = self._claims.try_again_in_s(job.stem for job in self._others)
                self._run.interruption.wait(min(_LOOK_EVERY_S, max(again_s or 0.0, 0.1)))
            elif self._followers:
                self._run.interruption.wait(_LOOK_EVERY_S)
        return False

    def _take_up_followers(self) -> bool:
        """True if songs can be continued now; those whose source nobody makes have failed."""
        coming = {job.stem for job in (*self._others, *self._followers)}
        for job in list(self._followers):
            source = str(job.continues)
            if self._tokens_of(job):
                self._followers.remove(job)
                self._waiting.append(job)
            elif source not in coming:
                self._looks[job.song] += 1  # its maker may be between WAV and tokens
                is_there = self._is_in_store(f"{source}.wav")
                if not is_there or self._looks[job.song] >= _LOOKS_FOR_TOKENS:
                    self._followers.remove(job)
                    what = "its tokens were not kept" if is_there else "it is not there"
                    self._run.observer.failed(job.song, f"{source} cannot be continued: {what}")
        return bool(self._waiting)

    def _begin(self, job: Job, engine: Engine) -> Song | Unfinished:
        song = song_of(job)

        def check(left: Unfinished) -> None:
            engine.check(left, self._run.request.sampling)
            if left.song != song:
                raise Unusable("it was begun with another prompt, length or seed")

        left = self._ask(lambda: self._checkpoints.load(job.stem, check))
        begun = Begun(job.song, timestamps.now())
        if left is None and (beginning := self._beginning(job, song, engine)):
            left = beginning
            n_made, source = left.n_made, job.options["continue"]
            begun = Begun(job.song, begun.at, n_made=n_made, n_frames=left.tokens.shape[1], continues=source)
        elif left is not None:
            begun = Begun(
                job.song,
                begun.at,
                n_made=left.n_made,
                n_frames=left.tokens.shape[1],
                charged_s=left.generation_s,
                n_resumed=left.resumed + 1,
            )
        self.begun[job.song] = begun
        self._run.observer.begun(begun)
        return song if left is None else left

    def _beginning(self, job: Job, song: Song, engine: Engine) -> Unfinished | None:
        """The song with the tokens of what it continues. Raises _NotYet, Unusable and Abandoned."""
        if job.continued_file is not None:
            tokens = encoded(
                job.continued_file, job.seconds, engine, lambda: not self._run.interruption.notice
            )
            return engine.beginning_with(song, tokens)
        if job.continues is None:
            return None
        if (source := self._tokens_of(job)) is None:
            raise _NotYet
        return engine.continued(song, source)

    def _claim(self, job: Job) -> bool:
        return self._ask(lambda: self._claims.take(job.stem))

    def _is_there(self, job: Job) -> bool:
        return self._is_in_store(job.song)

    def _is_in_store(self, song: str) -> bool:
        return song in self._ask(lambda: self._run.store.list(song))

    def _tokens_of(self, job: Job) -> Unfinished | None:
        """Those of the song that this one continues."""
        return self._ask(lambda: self._checkpoints.tokens_of(str(job.continues)))

    def _ask(self, action: Callable[[], Result]) -> Result:
        """The store's answer. A notice does not wait for it, and songs in progress not for long.

        Raises TimedOut; the action may continue then, and must not mind being begun again.
        """
        busy, interruption = bool(self._in_progress), self._run.interruption
        until = time.monotonic() + _ASK_S
        # A short error is waited out: without an answer no song follows until all in progress are done.
        retry = Retry(self._run.observer.note, _ASK_S) if busy else self._run.retry
        try:
            return answer(
                lambda: retry(action),
                lambda: not interruption.notice and not (busy and time.monotonic() > until),
            )
        except Unreachable:
            if busy or interruption.notice:
                raise TimedOut from None
            raise
