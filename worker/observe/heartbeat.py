"""A run's status, told every few seconds: keeps `status.json` (see worker/songs/status.py) up to date.

FOLDER/status.json is rewritten whole or not at all, and the same bytes go to `runs/RUN_ID/status.json`
in the store: each in a thread of its own, so that neither a slow store nor a full disk holds up the
run or the other copy. What cannot be written is logged once and tried again at the next beat. The
store is left alone until the list has been looked at (`planned`), so that a run that is refused
leaves nothing there.
Does not judge the run, and does not notice that its own clock is wrong.
"""

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.engine import Progress
from worker.run.progress import Tally
from worker.run.request import Order
from worker.songs.records import Record, Survey
from worker.songs.status import FILE, SCHEMA, GpuMemory, Status, stamp
from worker.store.base import Store
from worker.store.files import patiently

# Notes that tell of work. Others, such as waiting for the store, can come while nothing is done.
_WORK = {"resumed", "checkpoint", "stopping", "finishing"}

log = logging.getLogger(__name__)


class Heartbeat:
    """Tells the world how the run is doing. A `worker.run.request.Watch`.

        heartbeat = Heartbeat(folder, store, run_id, model, hourly_cost_usd)
        heartbeat.start()
        ...                            # the run tells it what happens; `alive` for other work
        heartbeat.finish("done", 0)    # always: else the last status just grows old

    Everything may be called from any thread and from a signal handler, and raises nothing that
    disk or store can cause. `every_s`: between beats.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        run_id: str,
        model: str,
        hourly_cost_usd: float,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._path, self._store, self._key = folder / FILE, store, f"runs/{run_id}/{FILE}"
        self._run_id, self._model, self._hourly_cost_usd = run_id, model, hourly_cost_usd
        self._every_s, self._clock, self._now = every_s, clock, now
        self._started_s, self._started_at = clock(), stamp(now())
        # Reentrant: a signal handler may call us amidst a call of ours.
        self._lock = threading.RLock()
        self._tally = Tally()
        self._state = "starting"
        self._notice: str | None = None
        self._exit_code: int | None = None
        self._engine: Mapping[str, Any] = {}
        self._uploads = False
        self._latest: tuple[bytes, bool] = b"", False  # what to upload next, and whether it is the last
        self._posted, self._over = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._beat_on, name="heartbeat", daemon=True),
            threading.Thread(target=self._upload_on, name="heartbeat-upload", daemon=True),
        ]
        self._warned: set[str] = set()

    def start(self) -> None:
        """The first beat comes at once."""
        for thread in self._threads:
            thread.start()

    def finish(self, state: str, exit_code: int, within_s: float = 10.0) -> None:
        """Write the last status to both places and wait for that, but no longer than this.

        The first call counts; later ones change nothing.
        """
        with self._lock:
            if self._exit_code is None:
                self._state, self._exit_code = state, exit_code
        self._over.set()
        until = time.monotonic() + within_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def state(self, name: str) -> None:
        """The run's state, one of worker.songs.status.STATES. `starting` becomes `generating` by itself."""
        with self._lock:
            if self._exit_code is None:
                self._state = name

    def notice(self, text: str) -> None:
        """Why the run is stopping, one line."""
        self._notice = text

    def loaded(self, described: Mapping[str, Any]) -> None:
        """The engine is there: what it says of itself (`Engine.describe`)."""
        self._engine = described
        self.alive()

    def alive(self, n: int = 1) -> None:
        """Work was done that no other call tells of: a part loaded, decoded, uploaded."""
        with self._lock:
            self._tally.progress += n

    # --- Watch

    def planned(self, found: Survey, order: Order) -> None:
        chosen = {job.song for job in order.selected}
        todo = {job.song: job.seconds for job in found.todo if job.song in chosen}
        with self._lock:
            self._tally.planned(len(chosen), sum(job.song in chosen for job in found.done), todo)
        self._uploads = True

    def progress(self, event: Progress) -> None:
        with self._lock:
            if self._state == "starting":
                self._state = "generating"
            self._tally.in_work(event.frames, self._clock())

    def made(self, record: Record) -> None:
        with self._lock:
            # Out of memory, the engine has gone on with fewer slots.
            self._engine = {"device": record.device, "precision": record.precision, "slots": record.slots}
            self._tally.made(record.song)

    def made_elsewhere(self, song: str) -> None:
        with self._lock:
            self._tally.made_elsewhere(song)

    def failed(self, song: str, reason: str) -> None:
        with self._lock:
            self._tally.failed(song)

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        """Of a run's other events those count that say what it is at, or that work was done."""
        with self._lock:
            if event == "stopping":
                self.notice(text)
                self.state("stopping")
            elif event == "finishing" and self._state != "stopping":
                self.state("finishing")
            if event in _WORK:
                self.alive()

    # --- the two threads

    def status(self) -> Status:
        """How things stand now."""
        memory = _gpu_memory()
        with self._lock:
            now_s, tally = self._clock(), self._tally
            rate = tally.rate(now_s)
            return Status(
                schema=SCHEMA,
                run_id=self._run_id,
                state=self._state,
                updated_at=stamp(self._now()),
                started_at=self._started_at,
                pid=os.getpid(),
                host=platform.node(),
                model=self._model,
                device=self._engine.get("device"),
                precision=self._engine.get("precision"),
                slots=self._engine.get("slots"),
                progress=tally.progress,
                songs=tally.songs(),
                frames=tally.frames(),
                current=list(tally.current()),
                rate=rate,
                eta_s=tally.left_s() / rate if rate else None,
                hourly_cost_usd=self._hourly_cost_usd,
                cost_usd=(now_s - self._started_s) / 3600 * self._hourly_cost_usd,
                gpu_memory=memory,
                notice=self._notice,
                exit_code=self._exit_code,
            )

    def beat(self, is_last: bool = False) -> None:
        """Write the status as it is now; the upload follows in its own thread."""
        content = self.status().to_json()
        self._latest = content, is_last
        self._posted.set()
        unfinished = self._path.with_name(f".{FILE}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # No fsync, unlike a song: after a power cut no one asks for the status.
            unfinished.write_bytes(content)
            patiently(lambda: unfinished.replace(self._path))
        except OSError as error:
            self._warn(f"cannot write {self._path} ({error.strerror or error})")

    def _beat_on(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.is_set()  # before the beat, which then has the exit code
            try:
                self.beat(is_last)
            except Exception as error:  # a run whose status is silent is taken for dead and ended
                self._warn(f"cannot tell the status ({type(error).__name__}: {error})")
            self._over.wait(self._every_s)

    def _upload_on(self) -> None:
        is_last = False
        while not is_last:
            self._posted.wait()
            # First cleared, then read: what is posted in between is seen, at worst twice.
            self._posted.clear()
            content, is_last = self._latest
            if self._uploads:
                try:
                    self._store.write(self._key, content)
                except Exception as error:  # whatever it is, the next beat may fare better
                    self._warn(f"cannot put {FILE} into {self._store.location} ({error})")

    def _warn(self, text: str) -> None:
        """Once for each text: a beat comes every few seconds."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s; going on, and trying again at each beat", text)


def _gpu_memory() -> GpuMemory | None:
    """Of the GPU that torch uses most. Asks torch's own books, never the GPU: that could wait for it,
    or spoil a CUDA graph that is being captured."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        if not cuda or not cuda.is_initialized():
            return None
        used, index = max((int(cuda.memory_reserved(i)), i) for i in range(cuda.device_count()))
        return GpuMemory(used, int(cuda.get_device_properties(index).total_memory))
    except Exception:  # torch may be half imported, or its device lost; the beat goes on
        return None
