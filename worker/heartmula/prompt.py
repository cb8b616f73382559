"""A song's tags and lyrics as the positions that the language model reads before the first frame.

    <bos> <tag>piano,happy</tag> <eos>   one position for reference audio   <bos> [verse] ... <eos>

Both texts are lower-cased, as heartlib does (HeartMuLaGenPipeline.preprocess). An empty text is <bos> <eos>.
Reference audio is not supported there either: its position holds what the model makes of silence.

A song of S seconds has ceil(12.5 S) frames. heartlib makes one more than floor(ms / 80): it does not count
the frame that follows the prompt. Does not import torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from worker.amounts import count
from worker.errors import BadInput
from worker.models.heartmula_config import GenerationConfig
from worker.models.heartmula_tree import FETCH

FRAMES_PER_S = 12.5
_OPEN, _CLOSE = "<tag>", "</tag>"


@dataclass(frozen=True)
class Prompt:
    """A text token for each position; that of position `reference` is not used."""

    ids: tuple[int, ...]
    reference: int

    @property
    def n_positions(self) -> int:
        """How many positions it takes."""
        return len(self.ids)


class Prompter:
    """Makes prompts by a checkpoint's tokenizer.json. Raises BadInput if that is damaged."""

    def __init__(self, tokenizer: Path, generation: GenerationConfig):
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises plain Exceptions
            first_line = str(error).partition("\n")[0]
            raise BadInput(f"{tokenizer} cannot be read ({first_line}); {FETCH}") from None
        self._bos, self._eos = generation.text_bos_id, generation.text_eos_id

    def __call__(self, tags: str, lyrics: str) -> Prompt:
        """The prompt of a song."""
        tags = tags.lower()
        opening = "" if tags.startswith(_OPEN) else _OPEN
        closing = "" if tags.endswith(_CLOSE) else _CLOSE
        before = self._enclosed(f"{opening}{tags}{closing}")
        after = self._enclosed(lyrics.lower())
        return Prompt((*before, 0, *after), len(before))

    def _enclosed(self, text: str) -> Sequence[int]:
        """The text's tokens between <bos> and <eos>, which a tokenizer may have added itself."""
        ids: list[int] = self._tokenizer.encode(text).ids
        if not ids or ids[0] != self._bos:
            ids = [self._bos, *ids]
        return ids if ids[-1] == self._eos else [*ids, self._eos]


def n_frames(seconds: float) -> int:
    """The frames of a song that is at least so long."""
    return math.ceil(round(seconds * FRAMES_PER_S, 6))  # 0.56 * 12.5 is over 7 in floating point


def n_positions(n_prompt: int, frames: int) -> int:
    """The positions that a song takes: its last frame is never read."""
    return n_prompt + frames - 1


def refuse_oversized(n_prompt: int, seconds: float, most: int) -> None:
    """Raises BadInput for a song that takes more than the `most` positions that a model has."""
    over = n_positions(n_prompt, n_frames(seconds)) - most
    if over > 0:
        raise BadInput(
            f"its words and its {seconds:g} s are {count(over, 'position')} over the model's {most:,}: "
            f"a word takes one or two, a second 12.5; shorten it"
        )
