"""From finished tokens to a song in the store, beside generation, one after another.

Audio, quality, WAV, then record, song and account, in that order: a crash between any two leaves a
record without a song, which is made again from its checkpoint, and never a song without its account.
Waits while the store cannot be reached. Does not generate, claim or watch.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

from worker.audio.wav import Unplayable, write_wav
from worker.engine import Abandoned, Engine, Finished
from worker.errors import UserError
from worker.run.request import Order
from worker.songs import records
from worker.songs.jobs import Job
from worker.songs.records import Record
from worker.store.base import Missing, Store
from worker.store.files import disk_errors
from worker.store.retry import Retry

_FROM_ENGINE = ("model", "revision", "device", "precision", "attention", "slots", "window_s", "stride_s")


@dataclass(frozen=True)
class Tune:
    """A song whose tokens are complete, and what its record says of how they came about."""

    job: Job
    event: Finished
    engine: Engine
    started_at: str  # when this run began with it
    resumed: int  # how often it was gone on with


@dataclass(frozen=True)
class Outcome:
    """What became of a song: its record, or why there is none."""

    song: str
    record: Record | None = None
    failed: str | None = None
    made_elsewhere: bool = False
    abandoned: bool = False


class Finisher:
    """Finishes songs in a thread. `account` is called there once a song is in the store."""

    def __init__(
        self,
        order: Order,
        store: Store,
        scratch: Path,
        retry: Retry,
        account: Callable[[Outcome], None],
    ):
        from worker.audio import (
            quality as qc,  # here: SciPy takes a second, and a run may have nothing to make
        )

        self._order, self._store, self._scratch, self._measure = order, store, scratch, qc.measure
        self._retry, self._account = retry, account
        self._given_up = Event()
        self._under_way: deque[Future[Outcome]] = deque()
        self._queue: SimpleQueue[tuple[Future[Outcome], Tune] | None] = SimpleQueue()
        # A daemon: the process may end while the store hangs.
        self._thread = Thread(target=self._finish_each, name="finish", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Songs that are not finished yet."""
        return sum(not future.done() for future in self._under_way)

    def submit(self, tune: Tune) -> None:
        """Have a song finished."""
        future: Future[Outcome] = Future()
        self._under_way.append(future)
        self._queue.put((future, tune))

    def collect(self) -> Iterator[Outcome]:
        """What became of the songs that have ended since the last call, in their order.

        Raises UserError when the store or the disk failed.
        """
        while self._under_way and self._under_way[0].done():
            yield self._under_way.popleft().result()

    def wait(self, timeout_s: float | None) -> None:
        """Until a song has ended, at most this long."""
        wait_for([future for future in self._under_way if not future.done()][:1], timeout_s)

    def give_up(self) -> None:
        """Drop what is not in the store yet; its tokens are in its checkpoint. Does not wait."""
        self._given_up.set()
        self._retry.give_up()

    def close(self, timeout_s: float) -> None:
        """Wait for the thread to end, at most this long."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _finish_each(self) -> None:
        while entry := self._queue.get():
            future, tune = entry
            try:
                future.set_result(self._finish(tune))
            except BaseException as error:  # whoever collects it hears of it
                future.set_exception(error)

    def _finish(self, tune: Tune) -> Outcome:
        job, event, engine = tune.job, tune.event, tune.engine
        path = self._scratch / job.song
        began = time.monotonic()
        try:
            audio = engine.decode(event.tokens, lambda: not self._given_up.is_set())
            decode_s = time.monotonic() - began
            with disk_errors(path):
                wav = write_wav(path, audio, job.seconds, engine.sample_rate)
            quality = self._measure(
                audio[: wav.n_samples], engine.sample_rate, job.seconds, engine.joins(job.seconds)
            )
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
                started_at=tune.started_at,
                finished_at=now(),
                generation_s=event.generation_s,
                decode_s=decode_s,
                interruptions=tune.resumed,
                hourly_cost_usd=price.hourly_usd,
                estimated_cost_usd=price.of(event.generation_s),
                price_basis=price.basis,
                price_paid_usd=price.paid_usd,
                sample_rate=engine.sample_rate,
                n_samples=wav.n_samples,
                peak=wav.peak,
                n_bytes=wav.n_bytes,
                sha256=wav.sha256,
                quality=asdict(quality),
                **{key: described[key] for key in _FROM_ENGINE},  # type: ignore[arg-type]
            )
            if self._given_up.is_set():
                raise Abandoned
            outcome = self._keep(job, record, path)
            self._account(outcome)
            return outcome
        except Abandoned:
            return Outcome(job.song, abandoned=True)
        except UserError:
            if self._given_up.is_set():  # the run ends for another reason
                return Outcome(job.song, abandoned=True)
            raise
        except Unplayable as error:
            return Outcome(job.song, failed=str(error))
        except Exception as error:  # this song's fault alone; the others go on
            return Outcome(job.song, failed=f"{type(error).__name__}: {error}".partition("\n")[0])
        finally:
            path.unlink(missing_ok=True)

    def _keep(self, job: Job, record: Record, path: Path) -> Outcome:
        """Record, then song, unless another run has made it meanwhile: its song and account stay."""
        key = records.record_key(job)
        elsewhere = Outcome(job.song, made_elsewhere=True)
        before = self._retry(lambda: self._read(key))
        if job.song in self._retry(lambda: self._store.list(job.song)):
            return elsewhere
        self._retry(lambda: self._store.write(key, record.to_json()))
        n_tries = 0

        def create() -> str | None:
            nonlocal n_tries
            n_tries += 1
            return self._store.create_file(job.song, path)

        if not self._retry(create) and not (n_tries > 1 and self._is_there(record)):
            if before is not None:
                # It may be the account of the song that is there.
                self._retry(lambda: self._store.write(key, before))
            return elsewhere
        return Outcome(job.song, record)

    def _is_there(self, record: Record) -> bool:
        """True if the answer to an earlier try was lost, which had put the song there."""
        content = self._retry(lambda: self._read(record.song))
        return content is not None and hashlib.sha256(content).hexdigest() == record.sha256

    def _read(self, key: str) -> bytes | None:
        try:
            return self._store.read(key)
        except Missing:
            return None


def now() -> str:
    """UTC, to the second, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
