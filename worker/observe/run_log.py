"""A run's own log: `worker.log` for people, `worker.jsonl` for programs.

    2026-11-22T19:50:59Z made rain_5c0ffee0.wav: 30 s of audio in 12.3 s, $0.0014

A JSON line has schema, time, level, event and text, then that event's own facts. Each line is in
its file when `note` returns; further lines of one text are indented. Every half minute, if they have
grown, and at the end both files are uploaded to `runs/RUN_ID/` in the store: whole up to 5 MB, beyond
that the first megabyte and the last four. The files in the folder stay whole. Nothing is uploaded
before `planned`, so that a run that is refused leaves nothing in the store.
Neither disk nor store can stop the run: what a full disk refuses is counted, and reported when there
is room again. What looks like a secret is not written. Deletes no log.
"""

import errno
import json
import logging
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker import timestamps
from worker.amounts import count, duration, usd
from worker.engine import Progress
from worker.redact import redactor
from worker.run.observer import Begun
from worker.run.request import RunRequest
from worker.songs.records import Record, Survey
from worker.store.base import Store

SCHEMA = 1
TEXT, JSON_LINES = "worker.log", "worker.jsonl"
MAX_UPLOAD_BYTES = 5_000_000
_HEAD_BYTES = 1_000_000
_TAIL_BYTES = MAX_UPLOAD_BYTES - _HEAD_BYTES - 2_000  # a line says what lies between
_PROGRESS_EVERY_S = 60.0
_MAX_NAMED = 4  # songs in one line of progress

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]+")


class RunLog:
    """Writes a run's log. An `Observer`.

        run_log = RunLog(folder, store, run_id)
        run_log.start()                                  # the uploads
        logging.getLogger().addHandler(run_log.handler)  # warnings of every library
        run_log.note("retry", "1 song once more, in fp32")
        run_log.close()                                  # the last upload

    Everything may be called from any thread and from a signal handler. `every_s`: between uploads.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        run_id: str,
        *,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        env: Mapping[str, str] = os.environ,
    ):
        self._store, self._run_id = store, run_id
        self._every_s, self._clock, self._now = every_s, clock, now
        self._redact = redactor(env)
        self._files = {folder / TEXT: _Entry.as_text, folder / JSON_LINES: _Entry.as_json}
        self._missing: Counter[Path] = Counter()  # lines that the disk refused
        self._uploaded: dict[Path, int] = {}  # sizes
        # Reentrant: a signal handler may note something in the middle of a note.
        self._lock = threading.RLock()
        self._next_progress_s = -math.inf
        self._uploads = self._has_warned = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._upload_on, name="run_log", daemon=True)
        self.handler: logging.Handler = _Handler(self)

    def start(self) -> None:
        """Start the uploads."""
        self._thread.start()

    def end(self) -> None:
        """Upload what is left, once. Further notes go to the files only."""
        self._over.set()

    def close(self, within_s: float = 10.0) -> None:
        """End, and wait for the last upload, but no longer than this."""
        self.end()
        if self._thread.ident is not None:
            self._thread.join(within_s)

    def note(self, event: str, text: str, *, level: str = "info", **facts: Any) -> None:
        """One entry. `text` is for people, `event` (a word) and `facts` (JSON) for programs."""
        entry = _Entry(timestamps.stamp(self._now()), level, event, self._redact(text), self._plain(facts))
        with self._lock:
            for path, lines_of in self._files.items():
                self._append(path, lines_of, entry)

    def upload(self) -> None:
        """Upload the files that have grown since the last time. Only the first failure is noted."""
        for path, lines_of in self._files.items():
            try:
                size = path.stat().st_size
                if size != self._uploaded.get(path):
                    self._store.write(f"runs/{self._run_id}/{path.name}", self._bounded(path, lines_of))
                    self._uploaded[path] = size
            except FileNotFoundError:
                continue  # nothing was noted, or the disk refused it
            except Exception as error:  # whatever it is, the next upload may succeed
                if not self._has_warned:
                    self._has_warned = True
                    place, here = self._store.location, path.parent
                    text = f"cannot upload the log to {place} ({error}); it is complete in {here}"
                    self.note("upload_failed", text, level="warning")

    # --- Observer

    def planned(self, found: Survey, request: RunRequest) -> None:
        chosen = {job.song for job in request.selected}
        todo = [job for job in found.todo if job.song in chosen]
        done = [job.song for job in found.done if job.song in chosen]
        seconds = sum(job.seconds for job in todo)
        self.note(
            "planned",
            f"{count(len(todo), 'song')} to make, {duration(seconds)} of audio; {len(done)} done already",
            run_id=request.run_id,
            model=request.model,
            hourly_cost_usd=request.price.hourly_usd,
            price_basis=request.price.basis,
            to_make=[job.song for job in todo],
            seconds=seconds,
            done_before=done,
        )
        for song, why in found.kept.items():
            if song in chosen:
                self.note("kept", f"kept {song}: {why}", level="warning", song=song, reason=why)
        self._uploads = True

    def begun(self, song: Begun) -> None:
        if song.n_resumed:
            self.note(
                "resumed",
                f"resuming {song.song} from frame {song.n_made} of {song.n_frames}",
                song=song.song,
                frame=song.n_made,
                charged_s=round(song.charged_s, 3),
            )

    def saved(self, songs: Sequence[str]) -> None: ...

    def progress(self, event: Progress) -> None:
        """A line a minute; the console shows more."""
        now = self._clock()
        if now < self._next_progress_s or not event.frames:
            return
        self._next_progress_s = now + _PROGRESS_EVERY_S
        parts = [f"{song} {n_done / n_frames:.0%}" for song, (n_done, n_frames) in event.frames.items()]
        more = f" and {len(parts) - _MAX_NAMED} more" if len(parts) > _MAX_NAMED else ""
        self.note("progress", f"working on {', '.join(parts[:_MAX_NAMED])}{more}", frames=event.frames)

    def made(self, record: Record) -> None:
        cost = record.estimated_cost_usd
        took = f"{record.length_s:g} s of audio in {record.generation_s:.1f} s, {usd(cost)}"
        flagged = f"; flagged: {', '.join(record.flags)}" if record.flags else ""
        self.note(
            "made",
            f"made {record.song}: {took}{flagged}",
            song=record.song,
            seconds=record.length_s,
            generation_s=record.generation_s,
            decode_s=record.decode_s,
            estimated_cost_usd=cost,
            flags=record.flags,
        )

    def made_elsewhere(self, song: str) -> None:
        text = f"skipped {song}: another run has made it meanwhile"
        self.note("made_elsewhere", text, song=song)

    def failed(self, song: str, reason: str) -> None:
        self.note("failed", f"failed {song}: {reason}", level="error", song=song, reason=reason)

    # --- files

    def _append(self, path: Path, lines_of: "Callable[[_Entry], bytes]", entry: "_Entry") -> None:
        """All lines of an entry or none; before them how many entries are missing."""
        lines = lines_of(entry)
        if n_entries := self._missing[path]:
            text = f"{count(n_entries, 'event')} missing here: the disk was full or not writable"
            missing = _Entry(entry.time, "warning", "missing", text, {"n_entries": n_entries})
            lines = lines_of(missing) + lines
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened each time: entries are few, and the disk may have been away.
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                if (file.write(lines) or 0) < len(lines):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._missing[path] = 0
        except OSError:
            self._missing[path] += 1

    def _bounded(self, path: Path, lines_of: "Callable[[_Entry], bytes]") -> bytes:
        """The file in whole lines; if it is too large, its beginning and its end."""
        with path.open("rb") as file:
            content = file.read(MAX_UPLOAD_BYTES + 1)
            if len(content) <= MAX_UPLOAD_BYTES:
                return _whole_lines(content)
            head = _whole_lines(content[:_HEAD_BYTES])
            file.seek(-_TAIL_BYTES, os.SEEK_END)
            file.readline()  # the end of a line that began before
            start = file.tell()
            tail = _whole_lines(file.read(_TAIL_BYTES))
        n_bytes = start - len(head)
        text = f"{n_bytes} bytes left out here; the whole file is {path}"
        left_out = _Entry(timestamps.stamp(self._now()), "info", "left_out", text, {"n_bytes": n_bytes})
        return head + lines_of(left_out) + tail

    def _upload_on(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(self._every_s)
            if self._uploads:
                self.upload()

    def _plain(self, value: Any) -> Any:
        """The value as JSON can hold it, without secrets."""
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, Mapping):
            return {self._redact(str(key)): self._plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(entry) for entry in value]
        return self._redact(str(value))


@dataclass(frozen=True)
class _Entry:
    """One event, as both files hold it."""

    time: str
    level: str
    event: str
    text: str
    facts: Mapping[str, Any]

    def as_text(self) -> bytes:
        """A line that begins with its time; no text can add one that does."""
        level = "" if self.level == "info" else f"{self.level}: "
        text = _CONTROL.sub(" ", self.text.replace("\r\n", "\n")).strip().replace("\n", "\n    ")
        return f"{self.time} {level}{text}\n".encode("utf-8", "backslashreplace")

    def as_json(self) -> bytes:
        """One line of ASCII: half a surrogate pair can be escaped, and not encoded."""
        first = {
            "schema": SCHEMA,
            "time": self.time,
            "level": self.level,
            "event": self.event,
            "text": self.text,
        }
        return (json.dumps({**first, **self.facts, **first}) + "\n").encode()


class _Handler(logging.Handler):
    """Notes warnings and errors of every logger, with their traceback."""

    def __init__(self, run_log: RunLog):
        super().__init__(logging.WARNING)
        self._run_log = run_log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = record.levelname.lower()
            self._run_log.note("log", self.format(record), level=level, logger=record.name)
        except Exception:
            self.handleError(record)


def _whole_lines(content: bytes) -> bytes:
    """Without a last line that is still being written."""
    return content[: content.rfind(b"\n") + 1]
