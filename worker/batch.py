"""The run: a list of jobs becomes songs, records and a cost report in a store.

Takes a song when no other worker has it, goes on with what was begun, hands it to the engine, and
finishes each song beside generation. A song that fails does not stop the others. Whatever ends a
run, what is finished is kept and accounted for, and what is begun is saved for the next: on a
notice wherever it stands, else as of its last window. Waits at the end for songs that other
workers have in work, and takes over those that they leave.
Does not print: a `Watch` is told what happens.
"""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from worker import health, records
from worker.checkpoints import Checkpoints, key_of
from worker.claims import TTL_S, Claims, claim_key
from worker.engine import Engine, Failed, Finished, Progress, Song, Unfinished
from worker.errors import Interrupted, Unreachable, UserError
from worker.finisher import Finisher, Outcome, Tune, now
from worker.interrupt import Interruption, Notice
from worker.jobs import Job, refuse_lyrics
from worker.order import Order, Summary, Watch
from worker.pace import Pace
from worker.patience import Patience
from worker.scratch import scratch_folder
from worker.store import Store
from worker.unfinished import Unusable

# Finished songs that may wait for their audio before generation waits for them: bounds memory.
_MAX_FINISHING = 32
# MusicGen's; asked for before a model is loaded, to know how large the songs will be.
_SAMPLE_RATE = 32_000
# A song whose tokens are complete when a signal comes may take this long to become a file.
_GRACE_S = 3.0
# How long a stopped run waits for what it is saving: a notice of two minutes has this much left.
_SAVE_S = 20.0
# How long the last account of a run that was stopped waits for a store that does not answer.
_LAST_ACCOUNT_S = 5.0
# How long songs in work are held up by a store that is asked for the next one.
_ASK_S = 10.0
# How often to look whether the songs that others have in work are done.
_LOOK_EVERY_S = 5.0

# What overflows in fp16 is tried once more in the precision that no song overflows in.
_NARROW, _WIDER = "fp16", "fp32"

LoadEngine = Callable[[str | None], Engine]  # the precision to use, None: as set
Result = TypeVar("Result")


def run(
    order: Order,
    store: Store,
    load_engine: LoadEngine,
    watch: Watch,
    *,
    interruption: Interruption | None = None,
    spare: Store | None = None,
    claim_ttl_s: float = TTL_S,
) -> Summary:
    """Make the selected songs that are not done. The engine is loaded only when there are any.

    `spare`: a folder of this machine for what the store does not take.
    Raises BadInput before anything is written, UserError when the store fails, and Interrupted when
    it was asked to end; from the first song on, report and summary are written whatever happens.
    """
    refuse_lyrics(order.selected)
    found = records.survey(store, order.jobs)
    records.refuse_other_model(found, order.model, None, store.location)
    this = _Run(order, store, found, watch, interruption or Interruption(), spare)
    watch.planned(found, order)
    if not this.todo:
        return this.end("done")
    this.check_health()
    with Claims(store, order.run_id, ttl_s=claim_ttl_s, say=this.warn) as claims:
        engine = load_engine(None)
        records.refuse_other_model(found, order.model, str(engine.describe()["revision"]), store.location)
        return this.carry_out(engine, load_engine, claims)


@dataclass(frozen=True)
class _Begun:
    """What is known of a song that this run has begun or gone on with."""

    at: str
    charged_s: float  # by earlier runs
    resumed: int  # how often it has been gone on with


class _NotNow(Exception):
    """The store has not answered, and something else cannot wait for it."""


class _Run:
    """One run's state: what is left, what is in work, the records so far and the summary."""

    def __init__(
        self,
        order: Order,
        store: Store,
        found: records.Survey,
        watch: Watch,
        interruption: Interruption,
        spare: Store | None,
    ):
        self._order, self._store, self._watch = order, store, watch
        self._interruption, self._spare = interruption, spare
        self._records = dict(found.records)
        chosen = {job.song for job in order.selected}
        self.todo = sorted((job for job in found.todo if job.song in chosen), key=lambda job: -job.seconds)
        self._jobs = {job.song: job for job in self.todo}
        self._waiting = list(self.todo)  # not tried yet
        self._others: list[Job] = []  # another worker has them
        self._overflowed: list[Job] = []
        self._begun: dict[str, _Begun] = {}
        self._in_work: set[str] = set()  # given to the engine, which has not given them back
        self._pace = Pace()
        self._patience = Patience(watch.note)
        self._lock = threading.Lock()  # of _records and _summary: the finisher accounts for its songs
        self._said_stopping = False
        self._started = time.monotonic()
        self._summary = Summary(
            run_id=order.run_id,
            started_at=now(),
            price=order.price,
            asked=[job.song for job in order.selected],
            seconds_asked=sum(job.seconds for job in order.selected),
            done_before=[job.song for job in found.done if job.song in chosen],
            kept={song: why for song, why in found.kept.items() if song in chosen},
        )

    # --- from beginning to end

    def check_health(self) -> None:
        """What would end the run hours from now."""
        seconds = [job.seconds for job in self.todo]
        for warning in health.check(seconds, _SAMPLE_RATE, Path(tempfile.gettempdir()), self._store):
            self._watch.note("warning", warning, level="warning")

    def carry_out(self, engine: Engine, load_engine: LoadEngine, claims: Claims) -> Summary:
        self._claims = claims
        try:
            with ExitStack() as parts:
                scratch = parts.enter_context(scratch_folder())
                self._checkpoints = Checkpoints(self._store, self._spare, self._watch.note)
                parts.callback(self._checkpoints.close, _SAVE_S)
                self._finisher = Finisher(
                    self._order, self._store, scratch, self._patience, self._account_for
                )
                parts.callback(self._finisher.close, _SAVE_S / 2)
                try:
                    self._make_all(engine, load_engine)
                    self._finish_all()
                except BaseException:
                    self._finisher.give_up()
                    raise
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Interrupted)
            self._end_early("interrupted" if stopped else "failed", str(error) or type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped at once; {self._left()}") from None
            raise
        if self._interruption.no_new_songs and self._n_left():
            reason = self._why_stopping()
            self._end_early("interrupted", reason)
            raise Interrupted(f"{reason}; {self._left()}")
        return self.end("failed" if self._summary.failed else "done")

    def end(self, state: str, reason: str | None = None) -> Summary:
        """The last account, however long the store is away."""
        self._summary.state, self._summary.reason = state, reason
        until = time.monotonic() + _LAST_ACCOUNT_S
        try:
            self._answer(
                lambda: self._patience(self._last_account),
                lambda: not self._interruption.notice or time.monotonic() < until,
            )
        except _NotNow:
            raise Unreachable(f"{self._store.location} did not take the last report; run it again") from None
        self._tidy()
        return self._summary

    def _end_early(self, state: str, reason: str) -> None:
        """The last account, if it can be had soon: why the run ends is what the user must hear."""
        self._summary.state, self._summary.reason = state, reason
        until = time.monotonic() + _LAST_ACCOUNT_S
        try:
            self._answer(self._last_account, lambda: time.monotonic() < until)
        except (_NotNow, UserError) as error:
            why = f": {error}" if str(error) else ""
            self.warn(f"the report and the summary are not the last ones{why}")

    def _last_account(self) -> None:
        if self._summary.made_elsewhere:  # its maker may have died before its own report
            self._records = dict(records.survey(self._store, self._order.jobs).records)
        self._account()

    def _tidy(self) -> None:
        """Remove what workers that were killed have left of songs that are done."""
        done = [job.stem for job in self._order.jobs if job.song in self._records]
        left = {key_of(stem) for stem in done} | {claim_key(stem) for stem in done}
        for store in [self._store, *([self._spare] if self._spare else [])]:
            with suppress(UserError):  # it is in nobody's way
                for key in left & _unfinished(store):
                    store.delete(key)

    def _make_all(self, engine: Engine, load_engine: LoadEngine) -> None:
        self._summary.engine = engine.describe()
        while True:
            self._generate(engine)
            if self._interruption.no_new_songs:
                self._say_stopping()
                return
            if self._waiting:  # the store did not answer when they were to be begun
                continue
            if self._overflowed:
                if not self._is_finished():
                    continue
                self._waiting, self._overflowed = self._overflowed, []
                engine.close()  # both would not fit into a small GPU
                engine = load_engine(_WIDER)
                precision = engine.describe()["precision"]
                self._watch.note("retry", f"{len(self._waiting)} songs once more, in {precision}")
            elif not self._wait_for_others():
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
        stream = engine.stream(self._songs(engine), self._order.sampling)
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
            self._in_work.clear()
            left = engine.unfinished()
            for song in left:
                self._charge(song.song.key, song.generation_s)
            if stopped:
                self._save(left)
                self._summary.saved = [song.song.key for song in left]

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

    # --- which songs

    def _songs(self, engine: Engine) -> Iterator[Song | Unfinished]:
        """The songs that are ours, each claimed when the engine has room for it."""
        while self._waiting and not self._interruption.no_new_songs:
            job = self._waiting.pop(0)
            try:
                if not self._claim(job):
                    self._others.append(job)
                    continue
                if self._is_there(job):  # asked for when it is ours: now it cannot change any more
                    self._release(job)
                    self._made_elsewhere(job)
                    continue
                song = self._begin(job, engine)
            except _NotNow:
                self._waiting.insert(0, job)
                return
            self._in_work.add(job.song)
            yield song

    def _begin(self, job: Job, engine: Engine) -> Song | Unfinished:
        song = Song(job.song, job.prompt, job.seconds, job.seed)

        def check(left: Unfinished) -> None:
            engine.check(left, self._order.sampling)
            if left.song != song:
                raise Unusable("it was begun with another prompt, length or seed")

        left = self._ask(lambda: self._checkpoints.load(job.stem, check))
        if left is None:
            self._begun[job.song] = _Begun(now(), 0.0, 0)
            return song
        self._begun[job.song] = _Begun(now(), left.generation_s, left.resumed + 1)
        self._summary.resumed.append(job.song)
        self._watch.note(
            "resumed",
            f"going on with {job.song} from frame {left.n_made} of {left.tokens.shape[1]}",
            song=job.song,
            frame=left.n_made,
            charged_s=round(left.generation_s, 3),
        )
        return left

    def _wait_for_others(self) -> bool:
        """Until a song that another worker had can be taken over: True; False if there is none."""
        said = False
        while self._others and not self._interruption.no_new_songs:
            self._collect()
            try:
                there = [job for job in self._others if self._is_there(job)]
                for job in there:
                    self._made_elsewhere(job)
                self._others = [job for job in self._others if job not in there]
                if any(self._claim(job) for job in self._others):
                    self._waiting, self._others = self._others, []
                    return True
            except _NotNow:
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

    def _claim(self, job: Job) -> bool:
        return self._ask(lambda: self._claims.take(job.stem))

    def _is_there(self, job: Job) -> bool:
        return job.song in self._ask(lambda: self._store.list(job.song))

    def _release(self, job: Job) -> None:
        with suppress(_NotNow):  # it runs out by itself
            self._ask(lambda: self._claims.release(job.stem))

    def _ask(self, action: Callable[[], Result]) -> Result:
        """The store's answer, which a notice does not wait for, and songs in work not for long.

        Raises _NotNow; the action may go on then, and must not mind being begun again.
        """
        busy, until = bool(self._in_work), time.monotonic() + _ASK_S
        try:
            return self._answer(
                action if busy else lambda: self._patience(action),
                lambda: not self._interruption.notice and not (busy and time.monotonic() > until),
            )
        except Unreachable:
            if busy or self._interruption.notice:
                raise _NotNow from None
            raise

    def _answer(self, action: Callable[[], Result], go_on: Callable[[], bool]) -> Result:
        """The action's result, waited for as long as `go_on` says. Raises _NotNow."""
        answer: Future[Result] = Future()

        def act() -> None:
            try:
                answer.set_result(action())
            except Exception as error:
                answer.set_exception(error)

        # A thread of its own, and a daemon: a request may hang for minutes.
        threading.Thread(target=act, name="ask", daemon=True).start()
        while not wait([answer], 0.1).done:
            if not go_on():
                raise _NotNow
        return answer.result()

    # --- what comes back

    def _take(self, event: object, engine: Engine) -> None:
        if isinstance(event, Progress):
            self._pace.note(event)
            self._watch.progress(event)
        elif isinstance(event, Unfinished):
            self._save([event])
        elif isinstance(event, Failed):
            self._in_work.discard(event.key)
            self._charge(event.key, event.generation_s)
            if event.overflowed and engine.describe()["precision"] == _NARROW:
                self._watch.note("overflow", f"{event.key} overflowed in {_NARROW}", song=event.key)
                with suppress(_NotNow):  # then it is gone on with from its last window
                    self._ask(lambda: self._checkpoints.remove(self._jobs[event.key].stem))
                self._overflowed.append(self._jobs[event.key])
            else:
                self._fail(event.key, event.reason)
        elif isinstance(event, Finished):
            self._in_work.discard(event.key)
            self._charge(event.key, event.generation_s)
            begun = self._begun[event.key]
            self._finisher.submit(Tune(self._jobs[event.key], event, engine, begun.at, begun.resumed))
        self._collect()
        while len(self._finisher) > _MAX_FINISHING and not self._interruption.notice:
            self._finisher.wait(0.2)
            self._collect()

    def _collect(self) -> None:
        for outcome in self._finisher.collect():
            if outcome.abandoned:
                self._summary.saved.append(outcome.song)
            elif outcome.record:
                self._watch.made(outcome.record)
            elif outcome.made_elsewhere:
                self._watch.made_elsewhere(outcome.song)
            elif outcome.failed:
                self._fail(outcome.song, outcome.failed)

    def _made_elsewhere(self, job: Job) -> None:
        with self._lock:
            self._summary.made_elsewhere.append(job.song)
        self._watch.made_elsewhere(job.song)

    def _fail(self, song: str, reason: str) -> None:
        with self._lock:
            self._summary.failed[song] = reason
        self._watch.failed(song, reason)
        self._release(self._jobs[song])

    def _save(self, songs: Sequence[Unfinished]) -> None:
        """Checkpoints of songs as they stand, but of none that another worker has taken over.

        Asks nobody: while the store is away, this machine keeps them.
        """
        held = self._claims.held
        for song in songs:
            begun = self._begun[song.song.key]
            if self._jobs[song.song.key].stem in held:
                self._checkpoints.save(replace(song, resumed=begun.resumed))

    # --- time and money

    def _in_time(self, notice: Notice) -> bool:
        """True while a song in work will be done before the machine goes."""
        if notice.deadline is None:
            return False
        left_s = notice.deadline - time.monotonic()
        return any(needed_s < left_s for needed_s in self._pace.left_s().values())

    def _charge(self, song: str, generation_s: float) -> None:
        with self._lock:
            self._summary.generation_s += generation_s - self._begun[song].charged_s

    def _account_for(self, outcome: Outcome) -> None:
        """A song is in the store, ours or another's: the account, then its checkpoint and claim go.

        In the finisher's thread.
        """
        with self._lock:
            if record := outcome.record:
                self._records[record.song] = record
                self._summary.made.append(
                    {
                        "song": record.song,
                        "seconds": record.seconds,
                        "generation_s": record.generation_s,
                        "estimated_cost_usd": record.estimated_cost_usd,
                    }
                )
            else:
                self._summary.made_elsewhere.append(outcome.song)
        self._patience(self._account)
        stem = self._jobs[outcome.song].stem
        self._patience(lambda: self._checkpoints.remove(stem))
        self._claims.release(stem)

    def _account(self) -> None:
        """The report and the summary, as of now."""
        with self._lock:  # not while the store is asked: generation must not wait for it
            known = dict(self._records)
        known = dict(records.write_report(self._store, self._order.jobs, known))
        with self._lock:
            self._records |= known
            self._summary.wall_s = time.monotonic() - self._started
            content = self._summary.to_json()
        self._store.write(f"runs/{self._order.run_id}/summary.json", content)

    # --- words

    def warn(self, text: str) -> None:
        self._watch.note("warning", text, level="warning")

    def _say_stopping(self) -> None:
        """Once, and before the end: the status must name the notice, by which the box goes off or not."""
        if self._interruption.no_new_songs and not self._said_stopping:
            self._said_stopping = True
            self._watch.note("stopping", self._why_stopping())

    def _n_left(self) -> int:
        made = {song["song"] for song in self._summary.made}
        ended = made.union(self._summary.failed, self._summary.made_elsewhere)
        return sum(job.song not in ended for job in self.todo)

    def _left(self) -> str:
        return f"{self._n_left()} songs to make; run it again to resume"

    def _why_stopping(self) -> str:
        notice = self._interruption.notice
        return f"stopped ({notice.reason if notice else self._interruption.drain_reason})"


def _unfinished(store: Store) -> set[str]:
    """The keys of what stands for songs in work."""
    return {*store.list("claims/"), *store.list("checkpoints/")}
