"""The interface between a run and the engine of any model: songs in, progress and finished songs out.

The engine decides which songs are generated together; the run never loops over prompts.
Does not import torch, so that both sides can import it.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.family import Family as Family
from worker.family import Sampling as Sampling
from worker.family import Solver as Solver

Tokens = NDArray[np.int16]  # [n_codebooks, n_frames]; TO_GENERATE marks a missing token
TO_GENERATE = -1
Audio = NDArray[np.float32]  # [n_samples] if mono, else [n_samples, 2]


@dataclass(frozen=True)
class Song:
    """One song to generate. Its random draws depend on `seed` alone.

    `lyrics`: of a family that sings, with its section marks.
    """

    key: str
    prompt: str
    seconds: float
    seed: int
    lyrics: str = ""


@dataclass(frozen=True)
class Progress:
    """Frames generated so far of each song in progress: `{key: (n_done, n_frames)}`."""

    frames: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Finished:
    """A song's tokens are complete. `generation_s` is its share of the wall clock.

    They are fewer frames than were asked where a song of a family that `ends_early` has ended.
    """

    key: str
    tokens: Tokens
    generation_s: float


@dataclass(frozen=True)
class Failed:
    """A song could not be generated; the others continue. `reason` is one line.

    `overflowed`: its logits became infinite or NaN; a precision with a wider range may work.
    """

    key: str
    reason: str
    generation_s: float
    overflowed: bool = False


@dataclass(frozen=True, eq=False)
class Unfinished:
    """A song in progress, with everything needed to resume it, in another process too.

    Resumed at a window boundary, it becomes byte for byte the song it would have been (same device,
    precision and slots). Resumed anywhere else, it keeps every token generated so far.
    A song that ended before the length that was asked has the tokens of its own length, and is whole.
    """

    song: Song
    tokens: Tokens
    generation_s: float  # charged so far
    sampling: Sampling
    model: str
    revision: str
    window: int  # frames
    stride: int  # frames
    resumed: int = 0  # how often another run has resumed it

    @property
    def n_made(self) -> int:
        """Frames that are complete."""
        return int((self.tokens != TO_GENERATE).all(axis=0).sum())


Event = Progress | Unfinished | Finished | Failed


def longest_first(songs: Iterable[Song]) -> list[Song]:
    """Sort songs by length, longest first: this leaves the fewest slots idle at the end."""
    return sorted(songs, key=lambda song: -song.seconds)


class Engine(Protocol):
    """A loaded model that turns songs into tokens, and tokens into audio."""

    family: Family
    sample_rate: int
    hop: int  # samples of a frame
    channels: int  # 2: stereo

    def describe(self) -> dict[str, str | int | float]:
        """The engine's part of a song's record: model, revision, device, precision, slots, window."""

    def stream(self, songs: Iterable[Song | Unfinished], sampling: Sampling) -> Generator[Event, None, None]:
        """Generate songs and resume unfinished ones, taking each only when a slot is free.

        Yields an Unfinished at every point from which a song can be resumed exactly, and right
        before its Finished.
        """

    def begin_no_more(self) -> None:
        """Finish the songs in progress and begin no others, not even one that was taken ahead."""

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""

    def unfinished(self) -> list[Unfinished]:
        """The songs in progress, with every token generated so far. Call it between events of `stream`."""

    def check(self, song: Unfinished, sampling: Sampling) -> None:
        """Raises OtherSettings or Unusable unless this engine would continue the same song."""

    def continued(self, song: Song, source: Unfinished) -> Unfinished:
        """A song that begins with another's tokens. Raises Unusable if those are not this model's.

        `source` is complete; the song is longer.
        """

    def beginning_with(self, song: Song, tokens: Tokens) -> Unfinished:
        """A song whose first frames are made: [n_codebooks, n]. Raises Unusable unless it is longer."""

    def encode(self, audio: Iterable[Audio], go_on: Callable[[], bool] = lambda: True) -> Tokens:
        """Tokens of audio at `sample_rate`, in pieces; those that sound most like it.

        Calls `go_on` regularly and raises Abandoned when it returns False.
        """

    def refuse_oversized(self, song: Song) -> None:
        """Raises BadInput for a song that the model has no room for, with how much it is over."""

    def joins(self, seconds: float) -> list[float]:
        """The seconds at which a song of this length changes from one window to the next."""

    def decode(self, tokens: Tokens, go_on: Callable[[], bool] = lambda: True, seed: int = 0) -> Audio:
        """Audio of a finished song; may be called from another thread while `stream` runs.

        `seed`: the song's, for a codec that draws.

        Calls `go_on` regularly and raises Abandoned when it returns False.
        """


class LoadableEngine(Engine, Protocol):
    """What the module of a family calls `Engine`."""

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str | None,
        dtype: str | None,
        slots: int | None,
        **options: Any,
    ) -> Engine:
        """Load a model by its name or folder.

        options: `stride_s` of a family that has a stride, `solver` of one whose codec has one.
        """


class Abandoned(Exception):
    """Decoding or encoding was stopped by its caller: `go_on` returned False."""
