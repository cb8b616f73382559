"""What is known of every finished song, and what follows from it: what is done, and the cost report.

`records/NAME_HASH.json` is written before its WAV, so a WAV never lacks its account. A song is
done when both exist. `cost_report.csv` is derived from the records alone, whichever run made them.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from worker.errors import BadInput
from worker.songs.jobs import Job
from worker.store.base import Missing, Store, json_bytes

SCHEMA = 1
REHEARSAL = "rehearsal"  # the built-in tiny model
REPORT_KEY = "cost_report.csv"
REPORT_COLUMNS = ("s3_filename", "prompt", "requested_duration_s", "generation_time_s", "estimated_cost_usd")
# S3 answers one small read in some 30 ms; a list of 1,000 songs must not take half a minute.
_READERS = 16
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RECORD_KEY = re.compile(r"records/([A-Za-z0-9_.-]+)\.json")


class Damaged(ValueError):
    """A record that does not say what a record must say."""


@dataclass(frozen=True)
class Record:
    """One finished song: what was asked, what made it, what it took, what it cost."""

    song: str  # NAME_HASH.wav
    prompt: str
    seconds: float
    name: str
    options: Mapping[str, str]
    seed: int
    model: str
    revision: str
    device: str
    precision: str
    attention: str
    slots: int
    window_s: float
    stride_s: float
    sampling: Mapping[str, float | int | bool]
    versions: Mapping[str, str]
    run_id: str
    started_at: str  # UTC, ISO 8601: when that run began with it
    finished_at: str
    generation_s: float  # the song's share of the time the engine was generating
    decode_s: float  # tokens to audio; beside generation, so not charged
    interruptions: int  # how often another run went on with it; the seconds of all are charged
    hourly_cost_usd: float
    estimated_cost_usd: float
    price_basis: str  # what hourly_cost_usd is
    price_paid_usd: float | None  # per hour, where it is known to differ
    sample_rate: int
    n_samples: int
    peak: float  # before scaling; over 1.0 the song was scaled down to fit
    n_bytes: int
    sha256: str  # of the WAV
    quality: Mapping[str, Any]  # see worker/audio/quality.py
    schema: int = field(default=SCHEMA)

    def to_json(self) -> bytes:
        return json_bytes(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> "Record":
        """Raises Damaged. Keys of later schemas are ignored."""
        try:
            found = json.loads(content)
            record = cls(**{f.name: found[f.name] for f in fields(cls)})
            for f in fields(cls):
                if not _fits(getattr(record, f.name), f.type):
                    raise TypeError(f"{f.name} is wrong")
            record.to_json()  # half a surrogate pair can be read, and never written
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from None
        return record


@dataclass(frozen=True)
class Survey:
    """What an output place holds of a list of jobs."""

    records: Mapping[str, Record]  # song -> record of every finished song of the list
    done: Sequence[Job]
    todo: Sequence[Job]
    kept: Mapping[str, str]  # song -> why its WAV is neither ours to count nor to overwrite
    makers: Mapping[str, str]  # model -> revision, of the records of the whole place


def record_key(job: Job) -> str:
    """Where a job's record lies."""
    return f"records/{job.stem}.json"


def song_of(key: str) -> str | None:
    """The song that a key of the store is the record of; None if it is no record's key."""
    match = _RECORD_KEY.fullmatch(key)
    return f"{match[1]}.wav" if match else None


def read_all(store: Store, keys: Iterable[str]) -> dict[str, Record | Damaged]:
    """Every record among these keys by its song; what has gone since the listing is left out."""
    songs = {key: song for key in keys if (song := song_of(key))}
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda key: _read(store, key), songs)
        return {song: record for song, record in zip(songs.values(), read, strict=True) if record}


def survey(store: Store, jobs: Sequence[Job]) -> Survey:
    """List the place once, read its records, and say what is done and what is left."""
    stored = store.list()
    found = read_all(store, stored)
    # In a list of several pages a song may be younger than the page that lacks its record.
    found |= read_all(
        store, [record_key(job) for job in jobs if job.song in stored and job.song not in found]
    )
    done, todo, kept = [], [], {}
    for job in jobs:
        record, wav = found.get(job.song), stored.get(job.song)
        if wav is None:
            todo.append(job)
        elif record is None:
            kept[job.song] = "it has no record (made by something else?)"
        elif isinstance(record, Damaged):
            kept[job.song] = f"its record is damaged ({record})"
        elif record.n_bytes != wav.size:
            kept[job.song] = f"it has {wav.size} bytes and its record says {record.n_bytes}"
        else:
            done.append(job)
    good = {song: record for song, record in found.items() if isinstance(record, Record)}
    makers = {record.model: record.revision for record in good.values()}
    return Survey({job.song: good[job.song] for job in done}, done, todo, kept, makers)


def _read(store: Store, key: str) -> Record | Damaged | None:
    try:
        record = Record.from_json(store.read(key))
    except Missing:
        return None
    except Damaged as error:
        return error
    return record if record.song == song_of(key) else Damaged(f"it is that of {record.song!r}")


def _fits(value: Any, kind: Any) -> bool:
    """True if a value read from JSON can be a field of this annotated type."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) < sys.float_info.max  # also false of NaN
    return isinstance(value, get_origin(kind) or kind)


def model_name(model: str) -> str:
    """The name that records hold: the hub id, or a folder's own name, the same on every machine.

    Raises BadInput if it can be neither; whether the model can be loaded is another matter.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve().name
    if model != REHEARSAL and not _HUB_ID.fullmatch(model):
        raise BadInput(f"no model folder at {model}; give a folder, a Hugging Face id or `rehearsal`")
    return model


def refuse_other_model(found: Survey, model: str, revision: str | None, location: str) -> None:
    """A song's name does not hold its model: one place holds songs of one model. Raises BadInput.

    `revision` is None while it is not known yet.
    """
    for maker, made_with in found.makers.items():
        if maker != model:
            what = f"{maker}, not {model}"
        elif revision not in (None, made_with):
            what = f"another revision of {model} ({made_with}, not {revision})"
        else:
            continue
        raise BadInput(f"{location} holds songs made by {what}; give another output folder or prefix")


def report_csv(jobs: Iterable[Job], records: Mapping[str, Record]) -> bytes:
    """cost_report.csv: a row per finished song of the list, in its order (RFC 4180, UTF-8)."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(REPORT_COLUMNS)
    for job in jobs:
        if record := records.get(job.song):
            rows.writerow(
                [
                    record.song,
                    record.prompt,
                    f"{record.seconds:g}",
                    f"{record.generation_s:.3f}",
                    f"{record.estimated_cost_usd:.6f}",
                ]
            )
    return text.getvalue().encode()


def write_report(store: Store, jobs: Sequence[Job], records: Mapping[str, Record]) -> Mapping[str, Record]:
    """Write cost_report.csv unless it is already so; -> the records that it is made from.

    When another worker has written songs of this list that `records` lacks, or is first, the
    records are read anew.
    """
    surveyed = False
    while True:
        content = report_csv(jobs, records)
        try:
            there, etag = store.read_tagged(REPORT_KEY)
        except Missing:
            if store.create(REPORT_KEY, content):
                return records
        else:
            if there == content:
                return records
            others = _songs_of(there).intersection(job.song for job in jobs) - records.keys()
            if (surveyed or not others) and store.replace(REPORT_KEY, content, etag):
                return records
        records, surveyed = survey(store, jobs).records, True


def _songs_of(report: bytes) -> set[str]:
    """The songs of a report, whoever wrote it."""
    rows = csv.reader(io.StringIO(report.decode("utf-8", "replace"), newline=""))
    return {row[0] for row in rows if row}
