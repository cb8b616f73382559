"""What the run asks of an engine, whatever its model: songs in, finished songs and progress out.

The engine decides which songs are worked on together; the run never loops over prompts.
Torch-free, so that both sides can import it.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int16]  # [n_codebooks, n_frames], TO_GENERATE where there is none yet
TO_GENERATE = -1
Audio = NDArray[np.float32]  # [n_samples], mono


@dataclass(frozen=True)
class Song:
    """One song to generate. Its random draws depend on `seed` alone."""

    key: str
    prompt: str
    seconds: float
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. MusicGen's defaults (Copet et al. 2023, section 4)."""

    guidance_scale: float = 3.0
    top_k: int = 250
    temperature: float = 1.0
    greedy: bool = False


@dataclass(frozen=True)
class Progress:
    """Frames made so far of each song in work: `{key: (n_done, n_frames)}`."""

    frames: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Finished:
    """A song's tokens are complete. `generation_s` is its share of the wall clock."""

    key: str
    tokens: Tokens
    generation_s: float


@dataclass(frozen=True)
class Failed:
    """A song could not be generated; the others go on. `reason` is one line.

    `overflowed`: its numbers left the precision's range; a wider one may do.
    """

    key: str
    reason: str
    generation_s: float
    overflowed: bool = False


@dataclass(frozen=True, eq=False)
class Unfinished:
    """A song as it stands: what is needed to go on with it, in another process too.

    Continued from a window boundary it becomes, byte for byte, the song it would have been (same
    device, precision and slots); from anywhere else every token made so far is kept.
    """

    song: Song
    tokens: Tokens
    generation_s: float  # charged so far
    sampling: Sampling
    model: str
    revision: str
    window: int  # frames
    stride: int  # frames
    resumed: int = 0  # how often it has been gone on with in another run

    @property
    def n_made(self) -> int:
        """Frames that are complete."""
        return int((self.tokens != TO_GENERATE).all(axis=0).sum())


Event = Progress | Unfinished | Finished | Failed


def longest_first(songs: Iterable[Song]) -> list[Song]:
    """Every song's number of steps is known: longest first leaves the fewest slots idle at the end."""
    return sorted(songs, key=lambda song: -song.seconds)


class Engine(Protocol):
    """A loaded model that turns songs into tokens, and tokens into audio."""

    sample_rate: int

    def describe(self) -> dict[str, str | int | float]:
        """What a record holds of the engine: model, revision, device, precision, slots, window."""

    def stream(self, songs: Iterable[Song | Unfinished], sampling: Sampling) -> Generator[Event, None, None]:
        """Generate all songs, and go on with unfinished ones, taking each only when there is room.

        An Unfinished comes whenever a song may be gone on with exactly from there, and right before
        its Finished.
        """

    def begin_no_more(self) -> None:
        """Finish the songs in work, and begin none, not even one that was taken ahead."""

    def close(self) -> None:
        """Give its memory back; nothing can be done with it any more."""

    def unfinished(self) -> list[Unfinished]:
        """The songs in work, with every token made so far. For between two events of `stream`."""

    def check(self, song: Unfinished, sampling: Sampling) -> None:
        """Raises OtherSettings or Unusable unless resuming it gives the song that was begun."""

    def joins(self, seconds: float) -> list[float]:
        """Where in a song of this length a window ends and the next goes on, in seconds."""

    def decode(self, tokens: Tokens, go_on: Callable[[], bool] = lambda: True) -> Audio:
        """Audio of a finished song; may be called from another thread while `stream` runs.

        Asks `go_on` now and then, and raises Abandoned when it says no.
        """


class Abandoned(Exception):
    """Decoding was given up because it was asked to."""
