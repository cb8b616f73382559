"""Songs to be made become songs in the store: engine, checkpoints and finisher, side by side.

What is begun is saved for the next run: on a notice wherever it stands, else as of its last window.
A song that fails does not stop the others. Whatever else is raised here ends the run, with what is
finished kept and accounted for.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from worker.engine import Engine, Failed, Finished, Progress, Unfinished
from worker.host.notice import Interruption, Notice
from worker.host.scratch import scratch_folder
from worker.run.asking import Asking
from worker.run.checkpoints import Checkpoints
from worker.run.claims import Claims
from worker.run.finisher import Finisher, Outcome, Tune
from worker.run.ledger import Account
from worker.run.pace import Pace
from worker.run.queue import Lineup
from worker.run.request import Order, Watch
from worker.songs.jobs import Job
from worker.store.base import Store
from worker.store.retry import Retry

# Finished songs that may wait for their audio before generation waits for them: bounds memory.
_MAX_FINISHING = 32
# A song whose tokens are complete when a signal comes may take this long to become a file.
_GRACE_S = 3.0
# How long a stopped run waits for what it is saving: a notice of two minutes has this much left.
_SAVE_S = 20.0

# What overflows in fp16 is tried once more in the precision that no song overflows in.
_NARROW, _WIDER = "fp16", "fp32"

LoadEngine = Callable[[str | None], Engine]  # the precision to use, None: as set


class Making:
    """The making of one run's songs. Called once."""

    def __init__(
        self,
        jobs: Sequence[Job],
        order: Order,
        store: Store,
        spare: Store | None,
        claims: Claims,
        account: Account,
        retry: Retry,
        interruption: Interruption,
        watch: Watch,
    ):
        self._order, self._store, self._spare = order, store, spare
        self._claims, self._account, self._watch = claims, account, watch
        self._retry, self._interruption = retry, interruption
        self._jobs = {job.song: job for job in jobs}
        self._overflowed: list[Job] = []
        self._pace = Pace()
        self._said_stopping = False

    def __call__(self, engine: Engine, load_engine: LoadEngine) -> None:
        """Every song that can be had, to its end in the store, as long as the run may go on."""
        with ExitStack() as parts:
            scratch = parts.enter_context(scratch_folder())
            self._checkpoints = Checkpoints(self._store, self._spare, self._watch.note)
            parts.callback(self._checkpoints.close, _SAVE_S)
            self._finisher = Finisher(self._order, self._store, scratch, self._retry, self._account_for)
            parts.callback(self._finisher.close, _SAVE_S / 2)
            self._lineup = Lineup(
                list(self._jobs.values()),
                self._store,
                self._claims,
                self._checkpoints,
                Asking(self._retry, self._interruption),
                self._interruption,
                self._account,
                self._watch,
            )
            try:
                self._generate_all(engine, load_engine)
                self._finish_all()
            except BaseException:
                self._finisher.give_up()
                raise

    def _generate_all(self, engine: Engine, load_engine: LoadEngine) -> None:
        while True:
            self._generate(engine)
            if self._interruption.no_new_songs:
                self._say_stopping()
                return
            if self._lineup.has_untried:
                continue
            if self._overflowed:
                if not self._is_finished():
                    continue
                self._lineup.again(self._overflowed)
                n_again, self._overflowed = len(self._overflowed), []
                engine.close()  # both would not fit into a small GPU
                engine = load_engine(_WIDER)
                precision = engine.describe()["precision"]
                self._watch.note("retry", f"{n_again} songs once more, in {precision}")
            elif not self._lineup.wait_for_others(self._collect):
                self._say_stopping()
                return

    def _is_finished(self) -> bool:
        """Wait for the songs that still need the engine; False if the run must end before."""
        while len(self._finisher) and not self._interruption.notice:
            self._finisher.wait(0.2)
            self._collect()
        return not len(self._finisher)

    def _generate(self, engine: Engine) -> None:
        """Whatever can be had now, until it is done or the run must end."""
        stream = engine.stream(self._lineup.songs(engine, self._order.sampling), self._order.sampling)
        stopped = True
        try:
            for event in stream:
                self._take(event, engine)
                if self._interruption.no_new_songs:
                    engine.begin_no_more()
                if (notice := self._interruption.notice) and not self._in_time(notice):
                    break
            else:
                stopped = False
        except KeyboardInterrupt:  # at once: the windows that are complete are saved
            stopped = False
            raise
        finally:
            stream.close()
            self._lineup.all_given_back()
            left = engine.unfinished()
            for song in left:
                self._charge(song.song.key, song.generation_s)
            if stopped:
                self._save(left)
                self._account.saved(song.song.key for song in left)

    def _finish_all(self) -> None:
        """Wait for the songs whose tokens are complete, as long as there is time."""
        if len(self._finisher):
            self._watch.note("finishing", f"finishing {len(self._finisher)} songs")
        asked_s = math.inf  # when a notice that leaves no time came
        while len(self._finisher):
            if notice := self._interruption.notice:
                self._say_stopping()
                now_s = time.monotonic()
                asked_s = min(asked_s, math.inf if notice.deadline else now_s)
                if now_s >= (notice.deadline or asked_s + _GRACE_S):
                    self._finisher.give_up()
                    break
            self._finisher.wait(0.2)
            self._collect()
        self._finisher.close(_GRACE_S)
        self._collect()

    # --- what comes back

    def _take(self, event: object, engine: Engine) -> None:
        if isinstance(event, Progress):
            self._pace.note(event)
            self._watch.progress(event)
        elif isinstance(event, Unfinished):
            self._save([event])
        elif isinstance(event, Failed):
            self._lineup.given_back(event.key)
            self._charge(event.key, event.generation_s)
            if event.overflowed and engine.describe()["precision"] == _NARROW:
                self._watch.note("overflow", f"{event.key} overflowed in {_NARROW}", song=event.key)
                self._lineup.start_over(self._jobs[event.key])
                self._overflowed.append(self._jobs[event.key])
            else:
                self._fail(event.key, event.reason)
        elif isinstance(event, Finished):
            self._lineup.given_back(event.key)
            self._charge(event.key, event.generation_s)
            begun = self._lineup.begun[event.key]
            self._finisher.submit(Tune(self._jobs[event.key], event, engine, begun.at, begun.resumed))
        self._collect()
        while len(self._finisher) > _MAX_FINISHING and not self._interruption.notice:
            self._finisher.wait(0.2)
            self._collect()

    def _collect(self) -> None:
        for outcome in self._finisher.collect():
            if outcome.abandoned:
                self._account.saved([outcome.song])
            elif outcome.record:
                self._watch.made(outcome.record)
            elif outcome.made_elsewhere:
                self._watch.made_elsewhere(outcome.song)
            elif outcome.failed:
                self._fail(outcome.song, outcome.failed)

    def _fail(self, song: str, reason: str) -> None:
        self._account.failed(song, reason)
        self._watch.failed(song, reason)
        self._lineup.release(self._jobs[song])

    def _save(self, songs: Sequence[Unfinished]) -> None:
        """Checkpoints of songs as they stand, but of none that another worker has taken over.

        Asks nobody: while the store is away, this machine keeps them.
        """
        held = self._claims.held
        for song in songs:
            begun = self._lineup.begun[song.song.key]
            if self._jobs[song.song.key].stem in held:
                self._checkpoints.save(replace(song, resumed=begun.resumed))

    def _account_for(self, outcome: Outcome) -> None:
        """A song is in the store, ours or another's: the account, then its checkpoint and claim go.

        In the finisher's thread.
        """
        self._account.is_there(outcome.song, outcome.record)
        self._retry(self._account.write)
        stem = self._jobs[outcome.song].stem
        self._retry(lambda: self._checkpoints.remove(stem))
        self._claims.release(stem)

    # --- time

    def _in_time(self, notice: Notice) -> bool:
        """True while a song in work will be done before the machine goes."""
        if notice.deadline is None:
            return False
        left_s = notice.deadline - time.monotonic()
        return any(needed_s < left_s for needed_s in self._pace.left_s().values())

    def _charge(self, song: str, generation_s: float) -> None:
        self._account.charge(generation_s - self._lineup.begun[song].charged_s)

    def _say_stopping(self) -> None:
        """Once, and before the end: the status must name the notice, by which the box goes off or not."""
        if self._interruption.no_new_songs and not self._said_stopping:
            self._said_stopping = True
            self._watch.note("stopping", self._interruption.reason)
