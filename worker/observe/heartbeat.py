"""A run's status, written every few seconds: keeps `status.json` (see worker/songs/status.py) up to date.

FOLDER/status.json is rewritten whole or not at all, and the same bytes are uploaded to
`runs/RUN_ID/status.json` in the store: each in a thread of its own, so that neither a slow store nor
a full disk holds up the run or the other copy. A failure is logged once, and the next beat tries
again. Nothing is uploaded before `planned`: a run refused for its list, model or store leaves nothing there.
Does not judge the run, and does not notice that its own clock is wrong.
"""

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker import timestamps
from worker.engine import Progress
from worker.run.observer import Begun
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs.records import Record, Survey
from worker.songs.status import FILE, SCHEMA, GpuMemory, Status
from worker.store.base import Store
from worker.store.files import patiently

log = logging.getLogger(__name__)


class Heartbeat:
    """Writes a run's status. An `Observer`.

        heartbeat = Heartbeat(folder, store, request, meter)
        heartbeat.start()
        ...                            # the run reports what happens, to the meter first
        heartbeat.finish("done", 0)    # always: else the run looks like one that was killed

    Everything may be called from any thread and from a signal handler, and raises no error of disk
    or store. `every_s`: between beats.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        request: RunRequest,
        meter: ProgressMeter,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._path, self._store, self._key = folder / FILE, store, f"runs/{request.run_id}/{FILE}"
        self._request, self._meter = request, meter
        self._every_s, self._clock, self._now = every_s, clock, now
        self._started_s, self._started_at = clock(), timestamps.stamp(now())
        # Reentrant: a signal handler may call in the middle of a call.
        self._lock = threading.RLock()
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

    def end(self, state: str, exit_code: int) -> None:
        """Have the last status written to disk and store. Only the first call counts."""
        with self._lock:
            if self._exit_code is None:
                self._state, self._exit_code = state, exit_code
        self._over.set()

    def finish(self, state: str, exit_code: int, within_s: float = 10.0) -> None:
        """End, and wait until the last status is on disk and in the store, but no longer than this."""
        self.end(state, exit_code)
        until = time.monotonic() + within_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def loaded(self, described: Mapping[str, Any]) -> None:
        """The engine is loaded: its `describe()`."""
        self._engine = described
        self._meter.alive()

    # --- Observer

    def planned(self, found: Survey, request: RunRequest) -> None:
        self._uploads = True

    def begun(self, song: Begun) -> None: ...

    def progress(self, event: Progress) -> None:
        with self._lock:
            if self._state == "starting":
                self._state = "generating"

    def made(self, record: Record) -> None:
        with self._lock:
            # Out of memory, the engine continues with fewer slots.
            self._engine = {"device": record.device, "precision": record.precision, "slots": record.slots}

    def made_elsewhere(self, song: str) -> None: ...

    def failed(self, song: str, reason: str) -> None: ...

    def saved(self, songs: Sequence[str]) -> None: ...

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        """Only events that change the state count."""
        with self._lock:
            if self._exit_code is not None:
                return
            if event == "stopping":
                self._state, self._notice = "stopping", text
            elif event == "finishing" and self._state != "stopping":
                self._state = "finishing"

    # --- the two threads

    def status(self) -> Status:
        """The run's status now."""
        memory = _gpu_memory()
        with self._lock:
            now_s, meter = self._clock(), self._meter
            return Status(
                schema=SCHEMA,
                run_id=self._request.run_id,
                state=self._state,
                updated_at=timestamps.stamp(self._now()),
                started_at=self._started_at,
                pid=os.getpid(),
                # As remote/state.sh names it: a pod's host name is only its container's.
                host=os.environ.get("RUNPOD_POD_ID") or platform.node(),
                model=self._request.model,
                device=self._engine.get("device"),
                precision=self._engine.get("precision"),
                slots=self._engine.get("slots"),
                progress=meter.work,
                songs=meter.songs(),
                frames=meter.frames(),
                current=meter.current(),
                rate=meter.rate(),
                eta_s=meter.eta_s(),
                hourly_cost_usd=self._request.price.hourly_usd,
                cost_usd=self._request.price.of(now_s - self._started_s),
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
            # No fsync, unlike a song: after a power cut nobody needs the status.
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
            except Exception as error:  # a run whose status grows old is taken for dead and ended
                self._warn(f"cannot write the status ({type(error).__name__}: {error})")
            self._over.wait(self._every_s)

    def _upload_on(self) -> None:
        is_last = False
        while not is_last:
            self._posted.wait()
            # First cleared, then read: what is posted in between is not missed, at worst uploaded twice.
            self._posted.clear()
            content, is_last = self._latest
            if self._uploads:
                try:
                    self._store.write(self._key, content)
                except Exception as error:  # whatever it is, the next upload may succeed
                    self._warn(f"cannot upload {FILE} to {self._store.location} ({error})")

    def _warn(self, text: str) -> None:
        """Once for each text: a beat comes every few seconds."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s; the run continues, and each beat tries again", text)


def _gpu_memory() -> GpuMemory | None:
    """Of the GPU that torch uses most.

    Asks torch's own accounts, never the GPU: that could wait for it, or break a CUDA graph capture.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        if not cuda or not cuda.is_initialized():
            return None
        used, index = max((int(cuda.memory_reserved(i)), i) for i in range(cuda.device_count()))
        return GpuMemory(used, int(cuda.get_device_properties(index).total_memory))
    except Exception:  # torch may be half imported, or its device lost; the beat goes on
        return None
