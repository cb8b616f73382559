"""Jobs, records and finished songs for tests that need a store with something in it."""

import hashlib
import io
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np

from worker.songs import jobs, records
from worker.songs.job import Job
from worker.songs.records import Record
from worker.store.base import Store

RATE = 32_000


def listed(*lines: str) -> list[Job]:
    """The jobs of a prompts file with these lines."""
    return jobs.parse("\n".join(lines).encode())


def wav_bytes(seconds: float = 0.01, level: int = 1000) -> bytes:
    """A WAV of one level."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.full(round(seconds * RATE), level, "<i2").tobytes())
    return content.getvalue()


def record_of(job: Job, wav: bytes = b"", **changes: object) -> Record:
    """A plausible record of a job and its WAV, with these fields changed."""
    record = Record(
        song=job.song,
        prompt=job.prompt,
        seconds=job.seconds,
        name=job.name,
        options=dict(job.options),
        seed=job.seed,
        model="rehearsal",
        revision="0123456789ab",
        device="cpu",
        precision="float32",
        slots=1,
        attention="sdpa",
        window_s=30.0,
        stride_s=18.0,
        sampling={"top_k": 250},
        versions={"torch": "2"},
        run_id="20260102T030405Z-abcd",
        started_at="2026-01-02T03:03:05Z",
        finished_at="2026-01-02T03:04:05Z",
        generation_s=12.5,
        decode_s=0.5,
        interruptions=0,
        hourly_cost_usd=0.4,
        estimated_cost_usd=12.5 / 3600 * 0.4,
        price_basis="as set",
        price_paid_usd=None,
        sample_rate=RATE,
        n_samples=round(job.seconds * RATE),
        peak=0.5,
        n_bytes=len(wav),
        sha256=hashlib.sha256(wav).hexdigest(),
        quality={"lufs": -14.0, "flags": []},
    )
    return replace(record, **changes)


def finish(store: Store, job: Job, wav: bytes | None = None, **changes: object) -> Record:
    """Put a finished song, as the worker would, into a store."""
    content = wav_bytes() if wav is None else wav
    record = record_of(job, content, **changes)
    store.write(records.record_key(job), record.to_json())
    store.write(job.song, content)
    return record


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Recording(Store):
    """A store that passes everything on and remembers each change: `("write", key)`, in order."""

    def __init__(self, inner: Store):
        self._inner, self.location = inner, inner.location
        self.changes: list[tuple[str, str]] = []

    def list(self, prefix=""):
        return self._inner.list(prefix)

    def read_tagged(self, key):
        return self._inner.read_tagged(key)

    def write(self, key, content):
        self.changes.append(("write", key))
        return self._inner.write(key, content)

    def create(self, key, content):
        self.changes.append(("create", key))
        return self._inner.create(key, content)

    def create_file(self, key, path):
        self.changes.append(("create", key))
        return self._inner.create_file(key, path)

    def replace(self, key, content, etag):
        self.changes.append(("replace", key))
        return self._inner.replace(key, content, etag)

    def download(self, key, path):
        self._inner.download(key, path)

    def delete(self, key):
        self.changes.append(("delete", key))
        self._inner.delete(key)
