"""What is asked of a run, who looks on, and the account that it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from worker.engine import Progress, Sampling
from worker.songs import records
from worker.songs.jobs import Job
from worker.songs.records import Record
from worker.store.base import json_bytes

SUMMARY_SCHEMA = 1


@dataclass(frozen=True)
class Price:
    """What an hour of this machine costs, where that figure is from, and what is really paid."""

    hourly_usd: float
    basis: str
    paid_usd: float | None = None  # per hour; None: not known to differ

    def of(self, seconds: float) -> float:
        """USD for `seconds` of the machine."""
        return seconds / 3600 * self.hourly_usd


@dataclass(frozen=True)
class Order:
    """What is asked of a run. `jobs` is the whole list; `selected` the part of it to make now."""

    jobs: Sequence[Job]
    selected: Sequence[Job]
    model: str  # as records name it
    price: Price
    run_id: str
    sampling: Sampling = field(default_factory=Sampling)


class Watch(Protocol):
    """Who looks on. Called from the run's own thread, `note` from any."""

    def planned(self, found: records.Survey, order: Order) -> None: ...
    def progress(self, event: Progress) -> None: ...
    def made(self, record: Record) -> None: ...
    def made_elsewhere(self, song: str) -> None: ...
    def failed(self, song: str, reason: str) -> None: ...
    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        """Anything else worth a line: `event` is a stable word, `text` is for people."""


class Watches:
    """Several that look on, told in turn."""

    def __init__(self, *watches: Watch):
        self._watches = watches

    def planned(self, found: records.Survey, order: Order) -> None:
        for watch in self._watches:
            watch.planned(found, order)

    def progress(self, event: Progress) -> None:
        for watch in self._watches:
            watch.progress(event)

    def made(self, record: Record) -> None:
        for watch in self._watches:
            watch.made(record)

    def made_elsewhere(self, song: str) -> None:
        for watch in self._watches:
            watch.made_elsewhere(song)

    def failed(self, song: str, reason: str) -> None:
        for watch in self._watches:
            watch.failed(song, reason)

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        for watch in self._watches:
            watch.note(event, text, level=level, **facts)


@dataclass
class Summary:
    """The account of one run, as `runs/RUN_ID/summary.json` holds it."""

    run_id: str
    started_at: str
    price: Price
    schema: int = SUMMARY_SCHEMA
    state: str = "running"  # running, done, failed, interrupted
    reason: str | None = None  # why it failed or was interrupted
    engine: Mapping[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    seconds_asked: float = 0.0
    done_before: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # foreign WAV -> why it is left alone
    made: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)  # begun by an earlier run, gone on with by this one
    saved: list[str] = field(default_factory=list)  # unfinished, to be gone on with by the next
    made_elsewhere: list[str] = field(default_factory=list)  # by another run meanwhile
    failed: dict[str, str] = field(default_factory=dict)
    generation_s: float = 0.0  # wall clock in which this run's engine was generating
    wall_s: float = 0.0  # the whole run, overhead included

    @property
    def seconds_made(self) -> float:
        return float(sum(song["seconds"] for song in self.made))

    @property
    def estimated_cost_usd(self) -> float:
        return self.price.of(self.generation_s)

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio made per second of generation."""
        return self.seconds_made / self.generation_s if self.generation_s else 0.0

    def to_json(self) -> bytes:
        derived = {
            "seconds_made": self.seconds_made,
            "real_time_factor": self.real_time_factor,
            "estimated_cost_usd": self.estimated_cost_usd,
            "overhead_s": self.wall_s - self.generation_s,
            "overhead_cost_usd": self.price.of(self.wall_s - self.generation_s),
        }
        return json_bytes(asdict(self) | derived)
