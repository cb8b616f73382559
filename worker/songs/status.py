"""A run's status.json: the format, and reading it. A run of the worker has songs, a training has steps.

For both sides: the worker's heartbeat and remote/train.py write it, and `inv status` and `fab status` read
it, hence nothing here needs torch or numpy. Does not judge whether a run does well.
"""

import json
import sys
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import datetime
from types import UnionType
from typing import Any, get_args, get_origin

from worker import timestamps
from worker.store.base import json_bytes

SCHEMA = 1
FILE = "status.json"
STATES = ("starting", "generating", "training", "finishing", "stopping", "done", "failed", "interrupted")


class Unreadable(ValueError):
    """Not a status that this version can read. The text says why, in one line."""


@dataclass(frozen=True)
class Songs:
    """Of the songs asked for; one that is kept as it is (see records.Survey) is none of these."""

    asked: int
    done: int  # before this run, by it, or by another meanwhile
    made: int  # by this run
    failed: int
    left: int


@dataclass(frozen=True)
class Frames:
    """Of the songs that were left to make; the total is known once the first is in progress."""

    done: int
    total: int


@dataclass(frozen=True)
class Steps:
    """Of a training. None: not known yet."""

    done: int  # those before a resume included
    total: int | None
    epoch: float | None
    loss: str | None  # as the training printed it, `nan` included


@dataclass(frozen=True)
class InProgress:
    """A song that the engine is working on."""

    song: str
    frames_done: int
    frames_total: int


@dataclass(frozen=True)
class GpuMemory:
    """Bytes that torch holds, and that the GPU has."""

    used: int
    total: int


@dataclass(frozen=True)
class Status:
    """The content of status.json, in its order. Either `songs` and `frames` are known, or `steps`."""

    schema: int
    run_id: str
    state: str  # one of STATES; `starting` until the first song or step is in progress
    updated_at: str  # UTC, `2026-11-22T19:50:59Z`
    started_at: str
    pid: int
    host: str  # the machine's name; of a pod its id
    model: str  # of a training its configuration
    device: str | None
    precision: str | None
    slots: int | None
    progress: int  # grows whenever work was done, and only then
    songs: Songs | None
    frames: Frames | None
    current: list[InProgress]
    rate: float | None  # seconds of audio per second, in the last minute; steps per second
    eta_s: float | None
    hourly_cost_usd: float
    cost_usd: float  # the whole time so far
    gpu_memory: GpuMemory | None
    notice: str | None  # why it is stopping
    exit_code: int | None  # in the last one only
    steps: Steps | None = None  # left out where there are songs

    def to_json(self) -> bytes:
        known = asdict(self)
        if self.steps is None:
            del known["steps"]
        return json_bytes(known)


def read(content: bytes) -> Status:
    """The status that these bytes hold. Raises Unreadable. Keys of later versions are ignored."""
    try:
        found = json.loads(content)
        if isinstance(found, dict) and isinstance(schema := found.get("schema"), int) and schema != SCHEMA:
            raise Unreadable(f"{FILE} has schema {schema}, not {SCHEMA}: another version wrote it")
        status: Status = _fitted(Status, found, "it")
        if status.state not in STATES:
            raise ValueError(f"its state is {status.state!r:.20}")
        if not (status.songs is None) == (status.frames is None) == (status.steps is not None):
            raise ValueError("it has both songs and steps, or neither")
        timestamps.parse(status.updated_at)
        timestamps.parse(status.started_at)
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise Unreadable(f"{FILE} is damaged ({reason})") from None
    return status


def is_stale(status: Status, now: datetime, after_s: float = 60) -> bool:
    """True if a run that has not ended wrote no status for longer than this, by `now`, which has a zone.

    The two clocks may differ; whoever can ask twice had better compare `progress`.
    """
    return status.exit_code is None and (now - timestamps.parse(status.updated_at)).total_seconds() > after_s


def _fitted(kind: Any, value: Any, name: str) -> Any:
    """The value as a field of this annotated type. Raises ValueError. Every number is 0 or more."""
    if isinstance(kind, UnionType):
        return None if value is None else _fitted(get_args(kind)[0], value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        if missing := [f.name for f in fields(kind) if f.name not in value and f.default is MISSING]:
            raise ValueError(f"{name} lacks {missing[0]}")
        known = [f for f in fields(kind) if f.name in value]
        return kind(**{f.name: _fitted(f.type, value[f.name], f.name) for f in known})  # type: ignore[operator]
    if get_origin(kind) is list and isinstance(value, list):
        return [_fitted(get_args(kind)[0], entry, name) for entry in value]
    if kind is str and isinstance(value, str):
        value.encode()  # half a surrogate pair can be read, and never written
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < sys.float_info.max:  # also false of NaN
            return value
    elif kind is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise ValueError(f"{name} is wrong")
