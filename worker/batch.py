"""The run: a list of jobs becomes songs, records and a cost report in a store.

Skips what is done, hands the rest to the engine, and finishes each song beside generation: audio,
WAV, then record, song and report into the store, in that order. A song that fails does not stop
the others. Whatever ends a run, what is finished is kept and accounted for.
Does not print: a `Watch` is told what happens.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from worker import records
from worker.audio import Unplayable, write_wav
from worker.engine import Engine, Failed, Finished, Progress, Sampling, Song, longest_first
from worker.errors import Interrupted, UserError
from worker.jobs import Job, refuse_lyrics
from worker.records import Record
from worker.store import Missing, Store

SUMMARY_SCHEMA = 1
# Finished songs that may wait for their audio before generation waits for them: bounds memory.
_MAX_FINISHING = 4


@dataclass(frozen=True)
class Price:
    """What an hour of this machine costs, and where that figure is from."""

    hourly_usd: float
    basis: str

    def of(self, seconds: float) -> float:
        """USD for `seconds` of the machine."""
        return seconds / 3600 * self.hourly_usd


@dataclass(frozen=True)
class Order:
    """What is asked of a run. `jobs` is the whole list; `selected` the part of it to make now."""

    jobs: Sequence[Job]
    selected: Sequence[Job]
    model: str  # as records name it
    price: Price
    run_id: str
    sampling: Sampling = field(default_factory=Sampling)


class Watch(Protocol):
    """Who looks on. Called from the run's own thread."""

    def planned(self, found: records.Survey, order: Order) -> None: ...
    def progress(self, event: Progress) -> None: ...
    def made(self, record: Record) -> None: ...
    def made_elsewhere(self, song: str) -> None: ...
    def failed(self, song: str, reason: str) -> None: ...


@dataclass
class Summary:
    """The account of one run, as `runs/RUN_ID/summary.json` holds it."""

    run_id: str
    started_at: str
    price: Price
    schema: int = SUMMARY_SCHEMA
    state: str = "running"  # running, done, failed, interrupted
    engine: Mapping[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    seconds_asked: float = 0.0
    done_before: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # foreign WAV -> why it is left alone
    made: list[dict[str, Any]] = field(default_factory=list)
    made_elsewhere: list[str] = field(default_factory=list)  # by another run, while this one made it too
    failed: dict[str, str] = field(default_factory=dict)
    generation_s: float = 0.0  # wall clock in which the engine was generating
    wall_s: float = 0.0  # the whole run, overhead included

    @property
    def seconds_made(self) -> float:
        return float(sum(song["seconds"] for song in self.made))

    @property
    def estimated_cost_usd(self) -> float:
        return self.price.of(self.generation_s)

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio made per second of generation."""
        return self.seconds_made / self.generation_s if self.generation_s else 0.0

    def to_json(self) -> bytes:
        derived = {
            "seconds_made": self.seconds_made,
            "real_time_factor": self.real_time_factor,
            "estimated_cost_usd": self.estimated_cost_usd,
            "overhead_s": self.wall_s - self.generation_s,
            "overhead_cost_usd": self.price.of(self.wall_s - self.generation_s),
        }
        return records.json_bytes(asdict(self) | derived)


def run(order: Order, store: Store, load_engine: Callable[[], Engine], watch: Watch) -> Summary:
    """Make the selected songs that are not done. The engine is loaded only when there are any.

    Raises BadInput before anything is written, UserError when the store fails, and Interrupted on
    Ctrl-C; from the first song on, report and summary are written whatever happens.
    """
    refuse_lyrics(order.selected)
    found = records.survey(store, order.jobs)
    records.refuse_other_model(found, order.model, None, store.location)
    this = _Run(order, store, found, watch)
    watch.planned(found, order)
    if not this.todo:
        return this.carry_out(None)
    store.check_writable()
    engine = load_engine()
    records.refuse_other_model(found, order.model, str(engine.describe()["revision"]), store.location)
    return this.carry_out(engine)


class _Run:
    """One run's state: the records so far and the summary."""

    def __init__(self, order: Order, store: Store, found: records.Survey, watch: Watch):
        self._order, self._store, self._watch = order, store, watch
        self._records = dict(found.records)
        chosen = {job.song for job in order.selected}
        self.todo = [job for job in found.todo if job.song in chosen]
        self._jobs = {job.song: job for job in self.todo}
        self._started = time.monotonic()
        self._summary = Summary(
            run_id=order.run_id,
            started_at=_now(),
            price=order.price,
            asked=[job.song for job in order.selected],
            seconds_asked=sum(job.seconds for job in order.selected),
            done_before=[job.song for job in found.done if job.song in chosen],
            kept={song: why for song, why in found.kept.items() if song in chosen},
        )

    def carry_out(self, engine: Engine | None) -> Summary:
        try:
            if engine:
                self._generate(engine)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            self._summary.state = "interrupted" if interrupted else "failed"
            with suppress(UserError):  # what went wrong first is what the user must hear
                self._account()
            if interrupted:
                left = len(self.todo) - len(self._summary.made) - len(self._summary.failed)
                left -= len(self._summary.made_elsewhere)
                raise Interrupted(f"stopped with {left} songs to make; run it again to resume") from None
            raise
        self._summary.state = "failed" if self._summary.failed else "done"
        self._account()
        return self._summary

    def _generate(self, engine: Engine) -> None:
        self._summary.engine = engine.describe()
        songs = longest_first(Song(job.song, job.prompt, job.seconds, job.seed) for job in self.todo)
        finishing: deque[Future[Record]] = deque()
        with (
            tempfile.TemporaryDirectory(prefix="songs-") as scratch,
            ThreadPoolExecutor(1, thread_name_prefix="finish") as finisher,
        ):
            try:
                for event in engine.stream(songs, self._order.sampling):
                    if isinstance(event, Progress):
                        self._watch.progress(event)
                    elif isinstance(event, Failed):
                        self._summary.generation_s += event.generation_s
                        self._fail(event.key, event.reason)
                    elif isinstance(event, Finished):
                        self._summary.generation_s += event.generation_s
                        finishing.append(finisher.submit(self._finish, engine, event, Path(scratch)))
                    while finishing and (finishing[0].done() or len(finishing) > _MAX_FINISHING):
                        self._collect(finishing.popleft())
            except BaseException:
                self._summary.generation_s += sum(song.generation_s for song in engine.unfinished())
                raise
            finally:
                while finishing:
                    self._collect(finishing.popleft())

    def _finish(self, engine: Engine, event: Finished, scratch: Path) -> Record:
        """Audio, WAV, record and song of finished tokens; runs beside generation."""
        job = self._jobs[event.key]
        started = time.monotonic()
        path = scratch / job.song
        try:
            audio = engine.decode(event.tokens)
            decode_s = time.monotonic() - started
            wav = write_wav(path, audio, job.seconds, engine.sample_rate)
            price, described = self._order.price, engine.describe()
            record = Record(
                song=job.song,
                prompt=job.prompt,
                seconds=job.seconds,
                name=job.name,
                options=dict(job.options),
                seed=job.seed,
                sampling=asdict(self._order.sampling),
                versions={package: version(package) for package in ("torch", "transformers")},
                run_id=self._order.run_id,
                finished_at=_now(),
                generation_s=event.generation_s,
                decode_s=decode_s,
                hourly_cost_usd=price.hourly_usd,
                estimated_cost_usd=price.of(event.generation_s),
                price_basis=price.basis,
                sample_rate=engine.sample_rate,
                n_samples=wav.n_samples,
                peak=wav.peak,
                n_bytes=wav.n_bytes,
                sha256=wav.sha256,
                **{key: described[key] for key in _FROM_ENGINE},  # type: ignore[arg-type]
            )
            self._keep(job, record, path)
            return record
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror or error}); free space in {scratch.parent}"
            ) from None
        except (UserError, _MadeElsewhere):
            raise
        except Unplayable as error:
            raise _SongFailed(job.song, str(error)) from error
        except Exception as error:
            raise _SongFailed(job.song, f"{type(error).__name__}: {error}".partition("\n")[0]) from error
        finally:
            path.unlink(missing_ok=True)

    def _keep(self, job: Job, record: Record, path: Path) -> None:
        """Record, then song: a crash between the two leaves a record without a song, which is made
        again, and never a song without its account. Raises _MadeElsewhere."""
        key = records.record_key(job)
        try:
            before = self._store.read(key)
        except Missing:
            before = None
        if self._store.list(job.song):
            raise _MadeElsewhere(job.song)
        self._store.write(key, record.to_json())
        if not self._store.create_file(job.song, path):
            if before is not None:
                self._store.write(key, before)  # it may be the account of the song that is there
            raise _MadeElsewhere(job.song)

    def _collect(self, future: "Future[Record]") -> None:
        try:
            record = future.result()
        except _MadeElsewhere as other:
            self._summary.made_elsewhere.append(other.song)
            self._watch.made_elsewhere(other.song)
            self._account()
            return
        except _SongFailed as failure:
            self._fail(failure.song, failure.reason)
            return
        self._records[record.song] = record
        self._summary.made.append(
            {
                "song": record.song,
                "seconds": record.seconds,
                "generation_s": record.generation_s,
                "estimated_cost_usd": record.estimated_cost_usd,
            }
        )
        self._watch.made(record)
        self._account()

    def _fail(self, song: str, reason: str) -> None:
        self._summary.failed[song] = reason
        self._watch.failed(song, reason)

    def _account(self) -> None:
        """The report and the summary, as of now."""
        self._summary.wall_s = time.monotonic() - self._started
        self._records |= records.write_report(self._store, self._order.jobs, self._records)
        self._store.write(f"runs/{self._order.run_id}/summary.json", self._summary.to_json())


_FROM_ENGINE = ("model", "revision", "device", "precision", "attention", "slots", "window_s", "stride_s")


class _MadeElsewhere(Exception):
    """Another run has made this song meanwhile; its song and its account stay."""

    def __init__(self, song: str):
        super().__init__(song)
        self.song = song


class _SongFailed(Exception):
    def __init__(self, song: str, reason: str):
        super().__init__(reason)
        self.song, self.reason = song, reason


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
