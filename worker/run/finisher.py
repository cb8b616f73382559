"""From finished tokens to a song in the store, beside generation, one after another.

Audio, quality and WAV file; then record and song (worker/run/publication.py); then the observers,
of which the first is the ledger, with its report; last the checkpoint and the claim go. Waits while
the store cannot be reached. Does not generate and does not claim.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from worker import timestamps
from worker.audio.wav import Unplayable, cut, write_wav
from worker.engine import Abandoned, Engine, Finished, Unfinished
from worker.errors import UserError
from worker.run.checkpoints import Checkpoints
from worker.run.claims import Claims
from worker.run.context import RunContext
from worker.run.observer import Begun
from worker.run.publication import Publication
from worker.songs import maker
from worker.songs.job import Job
from worker.songs.maker import Maker
from worker.songs.records import Record
from worker.store.files import disk_errors

_FROM_ENGINE = (
    "model", "revision", "device", "precision", "attention", "slots", "same_bytes", "window_s", "stride_s"
)  # fmt: skip
# How often a wait looks whether the run was asked to end: a signal handler cannot wake it.
_GLANCE_S = 0.1


@dataclass(frozen=True)
class Tune:
    """A song whose tokens are complete, and what its record holds of how they came about."""

    job: Job
    event: Finished
    whole: Unfinished | None  # the same tokens, as a file holds them, where the engine gave them so
    engine: Engine
    begun: Begun


class Finisher:
    """Finishes songs in a thread, and reports what became of each to the run's observer.

    `scratch`: the folder in which a WAV waits for the store.
    """

    def __init__(self, run: RunContext, scratch: Path, checkpoints: Checkpoints, claims: Claims):
        from worker.audio import quality  # here: SciPy takes a second, and a run may have nothing to make

        self._run, self._scratch, self._measure = run, scratch, quality.measure
        self._checkpoints, self._claims = checkpoints, claims
        self._given_up = threading.Event()
        self._changed = threading.Condition()  # guards the three below
        self._waiting: deque[Tune] = deque()
        self._n_unfinished = 0
        self._error: BaseException | None = None
        # A daemon: the process may end while the store hangs.
        self._thread = threading.Thread(target=self._finish_each, name="finish", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Songs that are not finished yet."""
        return self._n_unfinished

    def submit(self, tune: Tune) -> None:
        """Have a song finished."""
        with self._changed:
            self._waiting.append(tune)
            self._n_unfinished += 1
            self._changed.notify_all()

    def raise_error(self) -> None:
        """Raise what ended the thread, if anything did: the store or the disk failed."""
        if self._error:
            raise self._error

    def wait(self, n_left: int, go_on: Callable[[], bool]) -> bool:
        """Until at most this many songs are left, as long as `go_on` says; True if they are.

        Raises UserError when the store or the disk failed.
        """
        with self._changed:
            while self._n_unfinished > n_left and not self._error and go_on():
                self._changed.wait(_GLANCE_S)
        self.raise_error()
        return self._n_unfinished <= n_left

    def give_up(self) -> list[str]:
        """Drop what is not in the store yet, its tokens are in its checkpoint; -> the songs that waited.

        Does not wait; the song that is being finished may still get there.
        """
        self._given_up.set()
        self._run.retry.give_up()
        with self._changed:
            dropped = [tune.job.song for tune in self._waiting]
            self._waiting.clear()
            self._n_unfinished -= len(dropped)
            self._changed.notify_all()
        return dropped

    def close(self, timeout_s: float) -> None:
        """After `give_up`: wait for the song that is being finished, at most this long."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while self._n_unfinished and not self._error and (left_s := until_s - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _finish_each(self) -> None:
        while not self._error:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                tune = self._waiting.popleft()
            try:
                self._finish(tune)
            except Abandoned:
                self._run.observer.saved([tune.job.song])
            except BaseException as error:  # whoever waits gets it
                self._error = error
            with self._changed:
                self._n_unfinished -= 1
                self._changed.notify_all()

    def _finish(self, tune: Tune) -> None:
        """One song, to its end. Raises Abandoned when it was given up, UserError when the store failed."""
        path = self._scratch / tune.job.song
        try:
            record = self._make(tune, path)
            self._abandon_if_given_up()
            request = self._run.request
            ours = Maker.of(tune.engine.describe(), request.sampling, request.solver)
            self._run.retry(lambda: maker.refuse_started_over(self._run.store, ours))
            if self._run.retry(Publication(self._run.store, record, path)):
                self._run.observer.made(record)
                if tune.whole:
                    self._checkpoints.keep(tune.whole)
            else:
                self._run.observer.made_elsewhere(record.song)
            self._run.retry(lambda: self._checkpoints.remove(tune.job.stem))
            self._claims.release(tune.job.stem)
        except Abandoned:
            raise
        except UserError:
            self._abandon_if_given_up()  # the run ends for another reason
            raise
        except Unplayable as error:
            self._fail(tune.job, str(error))
        except Exception as error:  # this song's fault alone; the others continue
            self._fail(tune.job, f"{type(error).__name__}: {error}".partition("\n")[0])
        finally:
            path.unlink(missing_ok=True)

    def _abandon_if_given_up(self) -> None:
        if self._given_up.is_set():
            raise Abandoned

    def _fail(self, job: Job, reason: str) -> None:
        self._run.observer.failed(job.song, reason)
        self._claims.release(job.stem)

    def _make(self, tune: Tune, path: Path) -> Record:
        """The song as a file of the scratch folder, and its record."""
        job, engine, request = tune.job, tune.engine, self._run.request
        began = time.monotonic()
        audio = engine.decode(tune.event.tokens, lambda: not self._given_up.is_set(), seed=job.seed)
        decode_s = time.monotonic() - began
        made_s = job.seconds
        if engine.family.ends_early:
            made_s = min(made_s, len(audio) / engine.sample_rate)
        with disk_errors(path):
            audio = cut(audio, made_s, engine.sample_rate, request.fade_s)
            wav = write_wav(path, audio, made_s, engine.sample_rate)
        quality = self._measure(audio, engine.sample_rate, made_s, engine.joins(made_s))
        described = engine.describe()
        return Record(
            song=job.song,
            prompt=job.prompt,
            seconds=job.seconds,
            made_s=made_s,
            name=job.name,
            options=dict(job.options),
            seed=job.seed,
            licence=request.licence,
            sampling=asdict(request.sampling),
            solver=asdict(request.solver) if request.solver else {},
            versions={package: version(package) for package in ("torch", "transformers")},
            run_id=request.run_id,
            started_at=tune.begun.at,
            finished_at=timestamps.now(),
            generation_s=tune.event.generation_s,
            decode_s=decode_s,
            interruptions=tune.begun.n_resumed,
            hourly_cost_usd=request.price.hourly_usd,
            estimated_cost_usd=request.price.of(tune.event.generation_s),
            price_basis=request.price.basis,
            price_paid_usd=request.price.paid_usd,
            sample_rate=engine.sample_rate,
            n_samples=wav.n_samples,
            channels=wav.channels,
            fade_s=request.fade_s,
            peak=wav.peak,
            n_bytes=wav.n_bytes,
            sha256=wav.sha256,
            quality=asdict(quality),
            **{key: described[key] for key in _FROM_ENGINE},  # type: ignore[arg-type]
        )
