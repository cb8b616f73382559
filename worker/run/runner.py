"""Songs to be made become songs in the store: queue, engine, finisher, in one direction.

What is begun is saved for the next run: on a notice wherever it stands, else as of its last window.
A song that fails does not stop the others. Whatever else is raised here ends the run, with what is
finished kept and in the report.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

from worker.amounts import count
from worker.engine import Engine, Event, Failed, Finished, Progress, Unfinished
from worker.host.notice import Notice
from worker.run.checkpoints import Checkpoints
from worker.run.context import RunContext
from worker.run.finisher import Finisher, Tune
from worker.run.ledger import RunLedger
from worker.run.queue import SongQueue
from worker.songs.job import Job

# Finished songs that may wait for their audio before generation waits for them: bounds memory.
_MAX_FINISHING = 32

# Time was up, and a song that is nearly stored should be in the report.
_GRACE_S = 0.5

# What overflows in fp16 is tried once more in the precision that no song overflows in.
_NARROW, _WIDER = "fp16", "fp32"

LoadEngine = Callable[[str | None], Engine]  # the precision to use, None: as set


class Runner:
    """Makes one run's songs. Called once."""

    def __init__(
        self,
        run: RunContext,
        queue: SongQueue,
        checkpoints: Checkpoints,
        finisher: Finisher,
        ledger: RunLedger,
    ):
        self._run, self._queue, self._checkpoints = run, queue, checkpoints
        self._finisher, self._ledger = finisher, ledger
        self._jobs = {job.song: job for job in ledger.todo}
        self._whole: dict[str, Unfinished] = {}  # by song: what came right before its Finished
        self._overflowed: list[Job] = []
        self._has_reported_stop = False

    def __call__(self, engine: Engine, load_engine: LoadEngine) -> None:
        """Every song that can be had, to its end in the store, as long as the run may continue."""
        try:
            self._generate_all(engine, load_engine)
            self._finish_all()
        except BaseException:
            self._finisher.give_up()
            self._checkpoints.save_locally()
            self._finisher.close(self._run.budget.finish_audio_s)  # else the report would lack its song
            raise

    def _generate_all(self, engine: Engine, load_engine: LoadEngine) -> None:
        while True:
            self._generate(engine)
            if self._run.interruption.no_new_songs:
                self._report_stop()
                return
            if self._queue.has_untried:
                continue
            if self._overflowed:
                # The engine's memory is needed for the wider one, and songs being finished still use it.
                if not self._finisher.wait(0, self._may_continue):
                    continue
                self._queue.again(self._overflowed)
                n_again, self._overflowed = len(self._overflowed), []
                engine.close()  # both would not fit into a small GPU
                engine = load_engine(_WIDER)
                precision = engine.describe()["precision"]
                self._run.observer.note("retry", f"{count(n_again, 'song')} once more, in {precision}")
            elif self._queue.has_followers and not self._finisher.wait(0, self._may_continue):
                continue  # the songs that they continue are being finished
            elif not self._queue.wait_for_others(self._finisher.raise_error):
                self._report_stop()
                return

    def _generate(self, engine: Engine) -> None:
        """Whatever can be had now, until it is done or the run must end."""
        stream = engine.stream(self._queue.songs(engine), self._run.request.sampling)
        stopped = True
        try:
            for event in stream:
                self._take(event, engine)
                if self._run.interruption.no_new_songs:
                    engine.begin_no_more()
                if (notice := self._run.interruption.notice) and not self._in_time(notice):
                    break
            else:
                stopped = False
        except KeyboardInterrupt:  # at once: the windows that are complete are saved
            stopped = False
            raise
        finally:
            stream.close()
            self._queue.all_given_back()
            left = engine.unfinished()
            for song in left:
                self._charge(song.song.key, song.generation_s)
            if stopped:
                self._checkpoints.save_locally([self._with_history(song) for song in left])
                self._run.observer.saved([song.song.key for song in left])

    def _finish_all(self) -> None:
        """Wait for the songs whose tokens are complete, as long as there is time."""
        if len(self._finisher):
            self._run.observer.note("finishing", f"finishing {count(len(self._finisher), 'song')}")
        stop_at_s = math.inf

        def in_time() -> bool:
            nonlocal stop_at_s
            if notice := self._run.interruption.notice:
                self._report_stop()
                by_s = notice.deadline or time.monotonic() + self._run.budget.finish_audio_s
                stop_at_s = min(stop_at_s, by_s)
            return time.monotonic() < stop_at_s

        if not self._finisher.wait(0, in_time):
            self._run.observer.saved(self._finisher.give_up())
            self._finisher.close(_GRACE_S)

    # --- what the engine gives

    def _take(self, event: Event, engine: Engine) -> None:
        if isinstance(event, Progress):
            self._run.observer.progress(event)
        elif isinstance(event, Unfinished):
            song = self._whole[event.song.key] = self._with_history(event)
            self._checkpoints.save(song)
        elif isinstance(event, Failed):
            self._queue.given_back(event.key)
            self._whole.pop(event.key, None)
            self._charge(event.key, event.generation_s)
            self._fail(event, engine)
        elif isinstance(event, Finished):
            self._queue.given_back(event.key)
            self._charge(event.key, event.generation_s)
            whole, begun = self._whole.pop(event.key, None), self._queue.begun[event.key]
            self._finisher.submit(Tune(self._jobs[event.key], event, whole, engine, begun))
        self._finisher.wait(_MAX_FINISHING, self._may_continue)

    def _fail(self, event: Failed, engine: Engine) -> None:
        job = self._jobs[event.key]
        if event.overflowed and engine.describe()["precision"] == _NARROW:
            self._run.observer.note("overflow", f"{event.key} overflowed in {_NARROW}", song=event.key)
            self._queue.start_over(job)
            self._overflowed.append(job)
        else:
            self._run.observer.failed(event.key, event.reason)
            self._queue.release(job)

    def _with_history(self, song: Unfinished) -> Unfinished:
        return replace(song, resumed=self._queue.begun[song.song.key].n_resumed)

    def _charge(self, song: str, generation_s: float) -> None:
        self._ledger.charge(generation_s - self._queue.begun[song].charged_s)

    # --- time

    def _may_continue(self) -> bool:
        return not self._run.interruption.notice

    def _in_time(self, notice: Notice) -> bool:
        """True while a song in progress will be complete before the machine goes."""
        if notice.deadline is None:
            return False
        left_s = notice.deadline - time.monotonic()
        needed = [self._run.meter.song_left_s(song.song) for song in self._run.meter.current()]
        return any(needed_s is not None and needed_s < left_s for needed_s in needed)

    def _report_stop(self) -> None:
        """Once, and before the end: by the notice in the status the box goes off or stays on."""
        if self._run.interruption.no_new_songs and not self._has_reported_stop:
            self._has_reported_stop = True
            self._run.observer.note("stopping", self._run.interruption.reason)
