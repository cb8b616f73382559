"""What the run asks of an engine, whatever its model: songs in, finished songs and progress out.

The engine decides which songs are worked on together; the run never loops over prompts.
Torch-free, so that both sides can import it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int16]  # [n_codebooks, n_frames]
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
    """A song could not be generated; the others go on. `reason` is one line."""

    key: str
    reason: str
    generation_s: float


Event = Progress | Finished | Failed


class Engine(Protocol):
    """A loaded model that turns songs into tokens, and tokens into audio."""

    sample_rate: int

    def describe(self) -> dict[str, str | int | float]:
        """What a record holds of the engine: model, revision, device, precision, slots, window."""

    def stream(self, songs: Iterable[Song], sampling: Sampling) -> Iterator[Event]:
        """Generate all songs, taking each from `songs` only when there is room for it."""

    def decode(self, tokens: Tokens) -> Audio:
        """Audio of a finished song; may be called from another thread while `stream` runs."""
