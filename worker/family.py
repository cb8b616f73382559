"""What the models of one kind have in common, and how tokens are chosen: values for both sides.

Imports neither torch nor numpy: a user's machine has none.
"""

import math
from dataclasses import dataclass

from worker.errors import BadInput

# A value beyond these is a slip of the hand.
_MAX_STEPS, _MAX_GUIDANCE = 1000, 100


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. MusicGen's defaults (Copet et al. 2023, section 4).

    `top_k` 0: of all tokens. Raises BadInput for a value that no song can be made with.
    A family has its own defaults (Family.sampling).
    """

    guidance_scale: float = 3.0
    top_k: int = 250
    temperature: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_scale < math.inf:
            raise BadInput("guidance scale must be 0 or more; MusicGen's default is 3, HeartMuLa's 1.5")
        if self.top_k < 0:
            raise BadInput(
                "top k must be 0 or more; MusicGen's default is 250, HeartMuLa's 50, and 0 takes all tokens"
            )
        if not 0 < self.temperature < math.inf:
            raise BadInput("temperature must be over 0; MusicGen's default is 1")


@dataclass(frozen=True)
class Solver:
    """How a codec's flow matching turns noise and tokens into sound: Euler's method in `steps` steps, with
    classifier-free guidance if it is over 1. heartlib's defaults.

    Raises BadInput for a value that no song can be made with.
    """

    steps: int = 10
    guidance: float = 1.25

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MAX_STEPS:
            raise BadInput(f"codec steps must be from 1 to {_MAX_STEPS}; HeartMuLa's default is 10")
        if not 0 <= self.guidance <= _MAX_GUIDANCE:
            raise BadInput(
                f"codec guidance must be from 0 to {_MAX_GUIDANCE}; HeartMuLa's default is 1.25, "
                "and up to 1 there is none"
            )


@dataclass(frozen=True)
class Family:
    """What the models of one kind have in common; known before one of them is loaded.

    `engine`: the module whose `Engine` loads them. `channels`: of most of them.
    `n_tokens`: of which each is chosen.
    `solver`: of their codec, unless the user chooses another; None: their codec has none.
    `stride_s`: from one window to the next; None: songs are made in one pass, whatever their length.
    """

    name: str
    engine: str
    sampling: Sampling  # unless the user chooses another
    n_tokens: int
    longest_s: float
    sample_rate: int
    channels: int
    stride_s: float | None
    sings: bool  # lyrics
    continues: bool  # another song, or an audio file
    solver: Solver | None
    ends_early: bool  # a song may be complete before the length that was asked
