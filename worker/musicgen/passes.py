"""A MusicGen song's way through a slot: one pass for each window, its columns in the delay pattern."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.decoding.plan import Pass, Work
from worker.decoding.sampling import draws
from worker.engine import TO_GENERATE, Song, Tokens
from worker.musicgen import windows
from worker.musicgen.stepper import Stepper
from worker.musicgen.windows import Window


@dataclass(frozen=True)
class Windowing:
    """How songs are cut into windows. `channels`: 2 if stereo."""

    window: int  # frames
    stride: int  # frames
    channels: int = 1


class WindowPlan:
    """Implements `worker.decoding.plan.Plan`.

    `encode` returns a song's text states, [n_text, hidden].
    """

    def __init__(self, work: Work, stepper: Stepper, encode: Callable[[Song], Tensor], windowing: Windowing):
        self.work = work
        self._stepper, self._encode, self._channels = stepper, encode, windowing.channels
        plan = windows.plan(work.tokens.shape[1], windowing.window, windowing.stride)
        self._left = [window for window in plan if not _is_made(work.tokens, window)]
        self._n_columns = 0  # of the window in the slot

    @property
    def is_complete(self) -> bool:
        """See Plan."""
        return not self._left

    def begin(self, slot: int) -> None:
        """See Plan."""
        self._stepper.set_text(slot, self._encode(self.work.song))

    def open(self, slot: int) -> Pass:
        """See Plan."""
        window, tokens = self._left[0], self.work.tokens
        columns = windows.delayed(tokens, window, self._stepper.special, self._channels)
        drawn = draws(self.work.song.seed, window.start, window.length, len(tokens))
        position, self._n_columns = windows.first_unmade(columns) - 1, columns.shape[1]
        self._stepper.open(slot, columns, windows.in_columns(drawn, window, self._channels), position)
        return Pass(0, position, self._n_columns - 1)

    def save(self, slot: int) -> None:
        """See Plan."""
        window = self._left[0]
        columns = self._stepper.read(slot, self._n_columns)
        frames = windows.undelayed(columns, window, self._channels)
        self.work.tokens[:, window.start : window.end] = frames

    def close(self) -> None:
        """See Plan."""
        del self._left[0]

    def n_done(self, position: int) -> int:
        """See Plan."""
        window = self._left[0]
        return window.start + min(max(position, 0), window.length)


def _is_made(tokens: Tokens, window: Window) -> bool:
    return bool((tokens[:, window.start : window.end] != TO_GENERATE).all())
