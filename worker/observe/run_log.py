"""A run's own log: `worker.log` to read, `worker.jsonl` to count with.

    2026-11-22T19:50:59Z made rain_5c0ffee0.wav: 30 s of audio in 12.3 s, $0.0014

A JSON line has schema, time, level, event and text, then that event's own facts. Each line is in
its file when `note` returns; further lines of one text are indented. Every half minute, if there is
more, and at the end both files go to `runs/RUN_ID/` in the store: whole up to 5 MB, beyond that the
first megabyte and the last four, so that no run's uploads grow without bound; the files in the
folder stay whole. The store is left alone until the list has been looked at (`planned`), so that a
run that is refused leaves nothing there.
Neither disk nor store can stop the run: what a full disk refuses is counted, and said when there is
room again. What looks like a secret is not written. Follows no log, and deletes none.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from worker.engine import Progress
from worker.observe.console import span, usd
from worker.run.request import Order
from worker.songs.records import Record, Survey
from worker.songs.status import stamp
from worker.store.base import Store

SCHEMA = 1
TEXT, JSON_LINES = "worker.log", "worker.jsonl"
MAX_UPLOAD_BYTES = 5_000_000
_HEAD_BYTES = 1_000_000
_TAIL_BYTES = MAX_UPLOAD_BYTES - _HEAD_BYTES - 2_000  # a line says what lies between
_PROGRESS_EVERY_S = 60.0
_MAX_NAMED = 4  # songs in one line of progress

_SECRET_SETTINGS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RUNPOD_API_KEY")
_MIN_SECRET = 8  # what is shorter is no secret, and hiding it everywhere would spoil the text
_KEY_IDS = r"(?:AKIA|ASIA)[A-Z0-9]{12,}|(?:hf|rpa)_[A-Za-z0-9]{16,}"
# A bare AWS secret looks like a git commit, so only what is named one is hidden.
_NAMED = re.compile(
    r"((?:secret_?access_?key|session_?token|security-token|signature|authorization)[\"']?\s*[:=]\s*"
    r"[\"']?(?:bearer\s+)?)[^\s\"'&,;]+",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]+")


def redactor(env: Mapping[str, str]) -> Callable[[str], str]:
    """What puts *** in place of key ids, tokens, and the values of this environment's secrets."""
    secrets = {value for name in _SECRET_SETTINGS if len(value := env.get(name, "")) >= _MIN_SECRET}
    secrets |= {quote(secret, safe="") for secret in secrets}  # as in a signed address
    known = sorted(map(re.escape, secrets), key=len, reverse=True)
    pattern = re.compile("|".join([*known, _KEY_IDS]))
    return lambda text: _NAMED.sub(r"\1***", pattern.sub("***", text))


class Journal:
    """Writes a run's log. A `worker.run.request.Watch`.

        journal = Journal(folder, store, run_id)
        journal.start()                                  # the uploads
        logging.getLogger().addHandler(journal.handler)  # warnings, whoever has them
        journal.note("claimed", "claimed rain_5c0ffee0.wav", song="rain_5c0ffee0.wav")
        journal.close()                                  # the last upload

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
        # Reentrant: a signal handler may note something amidst a note.
        self._lock = threading.RLock()
        self._next_progress_s = -math.inf
        self._uploads = self._has_warned = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._upload_on, name="journal", daemon=True)
        self.handler: logging.Handler = _Handler(self)

    def start(self) -> None:
        """From now on what is noted is uploaded."""
        self._thread.start()

    def close(self, within_s: float = 10.0) -> None:
        """Upload what is left and wait for that, but no longer than this. Notes go on to the files."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(within_s)

    def note(self, event: str, text: str, *, level: str = "info", **facts: Any) -> None:
        """One entry. `text` is for a person, `event` (a word) and `facts` (JSON) for a program."""
        entry = _Entry(stamp(self._now()), level, event, self._redact(text), self._plain(facts))
        with self._lock:
            for path, lines_of in self._files.items():
                self._append(path, lines_of, entry)

    def upload(self) -> None:
        """Put into the store what has grown since the last time. A failure is noted, the first only."""
        for path, lines_of in self._files.items():
            try:
                size = path.stat().st_size
                if size != self._uploaded.get(path):
                    self._store.write(f"runs/{self._run_id}/{path.name}", self._bounded(path, lines_of))
                    self._uploaded[path] = size
            except FileNotFoundError:
                continue  # nothing was noted, or the disk refused it
            except Exception as error:  # whatever it is, the next time may fare better
                if not self._has_warned:
                    self._has_warned = True
                    where = f"{self._store.location}; it is in {path.parent}"
                    self.note("upload_failed", f"cannot put the log into {where} ({error})", level="warning")

    # --- Watch

    def planned(self, found: Survey, order: Order) -> None:
        chosen = {job.song for job in order.selected}
        todo = [job for job in found.todo if job.song in chosen]
        done = [job.song for job in found.done if job.song in chosen]
        seconds = sum(job.seconds for job in todo)
        self.note(
            "planned",
            f"{len(todo)} songs to make, {span(seconds)} of audio; {len(done)} done already",
            run_id=order.run_id,
            model=order.model,
            hourly_cost_usd=order.price.hourly_usd,
            price_basis=order.price.basis,
            to_make=[job.song for job in todo],
            seconds=seconds,
            done_before=done,
        )
        for song, why in found.kept.items():
            if song in chosen:
                self.note("kept", f"kept {song}: {why}", level="warning", song=song, reason=why)
        self._uploads = True

    def progress(self, event: Progress) -> None:
        """A line a minute; the display has more."""
        now = self._clock()
        if now < self._next_progress_s or not event.frames:
            return
        self._next_progress_s = now + _PROGRESS_EVERY_S
        parts = [f"{song} {n_done / n_frames:.0%}" for song, (n_done, n_frames) in event.frames.items()]
        more = f" and {len(parts) - _MAX_NAMED} more" if len(parts) > _MAX_NAMED else ""
        self.note("progress", f"working on {', '.join(parts[:_MAX_NAMED])}{more}", frames=event.frames)

    def made(self, record: Record) -> None:
        cost = record.estimated_cost_usd
        self.note(
            "made",
            f"made {record.song}: {record.seconds:g} s of audio in {record.generation_s:.1f} s, {usd(cost)}",
            song=record.song,
            seconds=record.seconds,
            generation_s=record.generation_s,
            decode_s=record.decode_s,
            estimated_cost_usd=cost,
        )

    def made_elsewhere(self, song: str) -> None:
        text = f"skipped {song}: another run has made it meanwhile; its song stays"
        self.note("made_elsewhere", text, song=song)

    def failed(self, song: str, reason: str) -> None:
        self.note("failed", f"failed {song}: {reason}", level="error", song=song, reason=reason)

    # --- files

    def _append(self, path: Path, lines_of: "Callable[[_Entry], bytes]", entry: "_Entry") -> None:
        """All lines of an entry or none, behind a word on those that are missing."""
        lines = lines_of(entry)
        if n_lines := self._missing[path]:
            text = f"{n_lines} entries are missing here: the disk refused them"
            lines = lines_of(_Entry(entry.time, "warning", "missing", text, {"n_entries": n_lines})) + lines
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened each time: entries are few, and so it starts anew when a disk is back.
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                if (file.write(lines) or 0) < len(lines):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._missing[path] = 0
        except OSError:
            self._missing[path] += 1

    def _bounded(self, path: Path, lines_of: "Callable[[_Entry], bytes]") -> bytes:
        """The file in whole lines; of one that is too large the beginning and the end."""
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
        text = f"{n_bytes} bytes are left out here; the whole file is {path}"
        left_out = _Entry(stamp(self._now()), "info", "left_out", text, {"n_bytes": n_bytes})
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
    """One event, on its way into both files."""

    time: str
    level: str
    event: str
    text: str
    facts: Mapping[str, Any]

    def as_text(self) -> bytes:
        """A line that begins with its time; no text can forge another."""
        level = "" if self.level == "info" else f"{self.level}: "
        text = _CONTROL.sub(" ", self.text.replace("\r\n", "\n")).strip().replace("\n", "\n    ")
        return f"{self.time} {level}{text}\n".encode("utf-8", "backslashreplace")

    def as_json(self) -> bytes:
        """One line of plain ASCII: a text may hold what can be escaped, and not encoded."""
        ours = {
            "schema": SCHEMA,
            "time": self.time,
            "level": self.level,
            "event": self.event,
            "text": self.text,
        }
        return (json.dumps({**ours, **self.facts, **ours}) + "\n").encode()


class _Handler(logging.Handler):
    """Notes what others log, from warnings on, a traceback with it."""

    def __init__(self, journal: Journal):
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = record.levelname.lower()
            self._journal.note("log", self.format(record), level=level, logger=record.name)
        except Exception:
            self.handleError(record)


def _whole_lines(content: bytes) -> bytes:
    """Without a line that is still being written."""
    return content[: content.rfind(b"\n") + 1]
