"""Which song next: those that no other worker has, from where they were left.

A song is claimed when the engine has room for it, looked for in the store once it is ours, and gone
on with from its checkpoint. Those that others have are waited for at the end, and taken over when
they are left. Does not generate, and does not know what becomes of a song.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from worker.engine import Engine, Sampling, Song, Unfinished
from worker.host.notice import Interruption
from worker.run.asking import Asking
from worker.run.checkpoints import Checkpoints
from worker.run.claims import Claims
from worker.run.finisher import now
from worker.run.ledger import Account
from worker.run.request import Watch
from worker.songs.checkpoint_file import Unusable
from worker.songs.jobs import Job
from worker.store.base import Store
from worker.store.retry import TimedOut

# How often to look whether the songs that others have in work are done.
_LOOK_EVERY_S = 5.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Begun:
    """What is known of a song that this run has begun or gone on with."""

    at: str
    charged_s: float  # by earlier runs
    resumed: int  # how often it has been gone on with


class Lineup:
    """The songs of one run that are still to be given to an engine."""

    def __init__(
        self,
        jobs: Sequence[Job],
        store: Store,
        claims: Claims,
        checkpoints: Checkpoints,
        asking: Asking,
        interruption: Interruption,
        account: Account,
        watch: Watch,
    ):
        self._store, self._claims, self._checkpoints, self._asking = store, claims, checkpoints, asking
        self._interruption, self._watch, self._account = interruption, watch, account
        self._waiting = list(jobs)  # not tried yet
        self._others: list[Job] = []  # another worker has them
        self._in_work: set[str] = set()  # given to the engine, which has not given them back
        self.begun: dict[str, Begun] = {}

    @property
    def has_untried(self) -> bool:
        """True if songs wait that nobody is known to have: the store did not answer in time."""
        return bool(self._waiting)

    def songs(self, engine: Engine, sampling: Sampling) -> Iterator[Song | Unfinished]:
        """The songs that are ours, each claimed when the engine has room for it."""
        while self._waiting and not self._interruption.no_new_songs:
            job = self._waiting.pop(0)
            try:
                if not self._claim(job):
                    self._others.append(job)
                    continue
                if self._is_there(job):  # asked for when it is ours: now it cannot change any more
                    self.release(job)
                    self._made_elsewhere(job)
                    continue
                song = self._begin(job, engine, sampling)
            except TimedOut:
                self._waiting.insert(0, job)
                return
            self._in_work.add(job.song)
            yield song

    def given_back(self, song: str) -> None:
        """The engine is done with it."""
        self._in_work.discard(song)

    def all_given_back(self) -> None:
        """The engine has ended."""
        self._in_work.clear()

    def again(self, jobs: Iterable[Job]) -> None:
        """Give them to the next engine."""
        self._waiting += jobs

    def start_over(self, job: Job) -> None:
        """Remove its checkpoint, if the store answers; else it is gone on with from there."""
        with suppress(TimedOut):
            self._ask(lambda: self._checkpoints.remove(job.stem))

    def release(self, job: Job) -> None:
        """Leave it to others."""
        with suppress(TimedOut):  # it runs out by itself
            self._ask(lambda: self._claims.release(job.stem))

    def wait_for_others(self, meanwhile: Callable[[], None]) -> bool:
        """Until a song that another worker had can be taken over: True; False if there is none."""
        said = False
        while self._others and not self._interruption.no_new_songs:
            meanwhile()
            try:
                there = [job for job in self._others if self._is_there(job)]
                for job in there:
                    self._made_elsewhere(job)
                self._others = [job for job in self._others if job not in there]
                if any(self._claim(job) for job in self._others):
                    self._waiting, self._others = self._others, []
                    return True
            except TimedOut:
                return False
            if self._others and not said:
                said = True
                self._watch.note(
                    "waiting",
                    f"waiting for {len(self._others)} songs that other workers have in work; "
                    "what they leave is taken over",
                    songs=[job.song for job in self._others],
                )
            if self._others:
                again_s = self._claims.try_again_in_s(job.stem for job in self._others)
                self._interruption.wait(min(_LOOK_EVERY_S, max(again_s or 0.0, 0.1)))
        return False

    def _begin(self, job: Job, engine: Engine, sampling: Sampling) -> Song | Unfinished:
        song = Song(job.song, job.prompt, job.seconds, job.seed)

        def check(left: Unfinished) -> None:
            engine.check(left, sampling)
            if left.song != song:
                raise Unusable("it was begun with another prompt, length or seed")

        left = self._ask(lambda: self._checkpoints.load(job.stem, check))
        if left is None:
            self.begun[job.song] = Begun(now(), 0.0, 0)
            return song
        self.begun[job.song] = Begun(now(), left.generation_s, left.resumed + 1)
        self._account.resumed(job.song)
        self._watch.note(
            "resumed",
            f"going on with {job.song} from frame {left.n_made} of {left.tokens.shape[1]}",
            song=job.song,
            frame=left.n_made,
            charged_s=round(left.generation_s, 3),
        )
        return left

    def _made_elsewhere(self, job: Job) -> None:
        self._account.is_there(job.song)
        self._watch.made_elsewhere(job.song)

    def _claim(self, job: Job) -> bool:
        return self._ask(lambda: self._claims.take(job.stem))

    def _is_there(self, job: Job) -> bool:
        return job.song in self._ask(lambda: self._store.list(job.song))

    def _ask(self, action: Callable[[], Result]) -> Result:
        return self._asking(action, busy=bool(self._in_work))
