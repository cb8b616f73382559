"""What one run made and cost, as `runs/RUN_ID/summary.json` holds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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


@dataclass
class Summary:
    """The summary of one run, as `runs/RUN_ID/summary.json` holds it."""

    run_id: str
    started_at: str
    price: Price
    schema: int = SUMMARY_SCHEMA
    state: str = "running"  # running, done, failed, interrupted
    reason: str | None = None  # why it failed or was interrupted
    engine: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""  # of the model's weights
    asked: list[str] = field(default_factory=list)
    seconds_asked: float = 0.0
    done_before: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # WAV that cannot be vouched for -> why
    made: list[dict[str, Any]] = field(default_factory=list)
    flagged: dict[str, list[str]] = field(default_factory=dict)  # made -> what may be wrong with it
    resumed: list[str] = field(default_factory=list)  # begun by an earlier run, resumed by this one
    saved: list[str] = field(default_factory=list)  # unfinished, for the next run to resume
    made_elsewhere: list[str] = field(default_factory=list)  # by another run meanwhile
    failed: dict[str, str] = field(default_factory=dict)
    generation_s: float = 0.0  # wall clock in which this run's engine was generating
    generated_s: float = 0.0  # seconds of audio that it made meanwhile, unfinished songs included
    wall_s: float = 0.0  # the whole run, overhead included

    @property
    def is_failed(self) -> bool:
        """True if a song that was asked for is not there and this run could not make it."""
        return bool(self.failed or self.kept)

    @property
    def seconds_made(self) -> float:
        """Seconds of the songs that this run finished, whichever runs made their audio."""
        return float(sum(song["seconds"] for song in self.made))

    @property
    def estimated_cost_usd(self) -> float:
        return self.price.of(self.generation_s)

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio that this run made per second of its generation."""
        return self.generated_s / self.generation_s if self.generation_s else 0.0

    def to_json(self) -> bytes:
        derived = {
            "seconds_made": self.seconds_made,
            "real_time_factor": self.real_time_factor,
            "estimated_cost_usd": self.estimated_cost_usd,
            "overhead_s": self.wall_s - self.generation_s,
            "overhead_cost_usd": self.price.of(self.wall_s - self.generation_s),
        }
        return json_bytes(asdict(self) | derived)
