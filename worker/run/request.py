"""What is asked of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.family import Family, Sampling, Solver
from worker.songs.families import MUSICGEN
from worker.songs.job import Job
from worker.songs.summary import Price


@dataclass(frozen=True)
class RunRequest:
    """What is asked of a run. `jobs` is the whole list; `selected` the part of it to make now."""

    jobs: Sequence[Job]
    selected: Sequence[Job]
    model: str  # as records name it
    price: Price
    run_id: str
    family: Family = MUSICGEN  # the model's
    licence: str = ""  # of the model's weights
    sampling: Sampling = field(default_factory=Sampling)
    solver: Solver | None = None  # of the codec, where it has one
    start_over: bool = False  # unfinished songs that were begun with other settings begin again
    fade_s: float = 0.0  # a song's end, where it is cut, fades out over this
    verify: bool = False  # read every finished WAV and compare its checksum
