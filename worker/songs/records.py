"""What is known of every finished song, and what follows from it: which songs of a list are done.

`records/NAME_HASH.json` is written before its WAV, so a WAV never lacks its record. A song is done
when both exist and fit each other.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin

from worker.songs.job import Job
from worker.store.base import Missing, Store, json_bytes

SCHEMA = 1
# S3 answers one small read in some 30 ms; a list of 1,000 songs must not take half a minute.
_READERS = 16
_WAV_READERS = 4
_RECORD_KEY = re.compile(r"records/([A-Za-z0-9_.-]+)\.json")
# What records lack that were written before a field was added.
_OLDER: Mapping[str, Any] = {
    "channels": 1,
    "fade_s": 0.0,
    "same_bytes": "",
    "licence": "",
    "made_s": None,
    "solver": {},
}


class Damaged(ValueError):
    """A record that does not say what a record must say."""


@dataclass(frozen=True)
class Record:
    """One finished song: what was asked, what made it, what it took, what it cost."""

    song: str  # NAME_HASH.wav
    prompt: str
    seconds: float  # asked
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
    started_at: str  # timestamp: when that run began it
    finished_at: str
    generation_s: float  # the song's share of the time the engine was generating
    decode_s: float  # tokens to audio; beside generation, so not charged
    interruptions: int  # how often another run resumed it; the seconds of all are charged
    hourly_cost_usd: float
    estimated_cost_usd: float
    price_basis: str  # what hourly_cost_usd is
    price_paid_usd: float | None  # per hour, where it is known to differ
    sample_rate: int
    n_samples: int  # of each channel
    peak: float  # before scaling; over 1.0 the song was scaled down to fit
    n_bytes: int
    sha256: str  # of the WAV
    quality: Mapping[str, Any]  # see worker/audio/quality.py
    schema: int = field(default=SCHEMA)
    channels: int = 1  # 2: stereo
    fade_s: float = 0.0  # over which its cut end fades out
    same_bytes: str = ""  # under which conditions this machine makes the same tokens again
    licence: str = ""  # of the model's weights
    # Of the codec's flow matching, where it has one.
    solver: Mapping[str, float | int] = field(default_factory=dict)
    made_s: float | None = None  # less than `seconds` if the song ended early; None in older records: all

    @property
    def is_consistent(self) -> bool:
        """True if the length in samples is that in seconds, and the bytes can hold the samples."""
        n_samples = self.length_s * self.sample_rate
        return abs(n_samples - self.n_samples) <= 1 and self.n_bytes > self.n_samples * self.channels

    @property
    def length_s(self) -> float:
        """Of the song as it was made."""
        return self.seconds if self.made_s is None else self.made_s

    @property
    def flags(self) -> list[str]:
        """Words for what may be wrong with it: docs/quality.md."""
        return list(self.quality.get("flags", ()))

    def to_json(self) -> bytes:
        return json_bytes(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> "Record":
        """Raises Damaged. Keys of later schemas are ignored."""
        try:
            found = {**_OLDER, **json.loads(content)}
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
    """What an output holds of a list of jobs."""

    records: Mapping[str, Record]  # song -> record of every finished song of the output, listed or not
    done: Sequence[Job]
    todo: Sequence[Job]
    kept: Mapping[str, str]  # song -> why its WAV can be neither vouched for nor overwritten
    makers: Mapping[str, str]  # model -> revision, of the records of the whole output


def key_of(song: str) -> str:
    """Where the record of NAME_HASH.wav lies."""
    return f"records/{song.removesuffix('.wav')}.json"


def record_key(job: Job) -> str:
    """Where a job's record lies."""
    return key_of(job.song)


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


def survey(store: Store, jobs: Sequence[Job], *, verify: bool = False) -> Survey:
    """List the output once, read its records, and say what is done and what is left.

    A WAV whose size is not that of its record is kept. Its checksum is compared where the record's
    own figures do not fit each other, and for every song of the list with `verify`.
    """
    stored = store.list()
    found = read_all(store, stored)
    # In a list of several pages a song may be younger than the page that lacks its record.
    found |= read_all(
        store, [record_key(job) for job in jobs if job.song in stored and job.song not in found]
    )
    good = {song: record for song, record in found.items() if isinstance(record, Record)}
    makers = {record.model: record.revision for record in good.values()}
    there = {
        song: record
        for song, record in good.items()
        if song in stored and stored[song].size == record.n_bytes
    }
    listed = {job.song: there[job.song] for job in jobs if job.song in there}
    wrong = _wrong_checksums(store, [r for r in listed.values() if verify or not r.is_consistent])
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
        elif job.song in wrong:
            kept[job.song] = "its content is not what its record says (the checksum differs)"
        else:
            done.append(job)
    finished = {song: record for song, record in there.items() if song not in wrong}
    return Survey(finished, done, todo, kept, makers)


def _wrong_checksums(store: Store, records: Sequence[Record]) -> set[str]:
    """The songs among these whose WAV is not the one that its record describes."""

    def is_wrong(record: Record) -> bool:
        try:
            return store.sha256(record.song) != record.sha256
        except Missing:
            return True

    with ThreadPoolExecutor(_WAV_READERS) as pool:
        return {
            record.song for record, wrong in zip(records, pool.map(is_wrong, records), strict=True) if wrong
        }


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
    if kind is int:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, get_origin(kind) or kind)
