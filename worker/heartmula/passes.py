"""A HeartMuLa song's way through a slot: its prompt and its frames, position after position.

A song goes from its first frame to its last in passes, at the end of which it can be resumed exactly: at
every multiple of `Grid.every` positions, whatever the song and wherever it was begun. It may end before the
length that was asked (stepper.py); its tokens are then cut to what it has.

Where a filled position may differ in its last bits from the same position made by a step, the next pass
begins by filling the last one's positions anew, in whole chunks. A song that is resumed there does the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worker.decoding.plan import Pass, Work
from worker.decoding.sampling import draws
from worker.engine import TO_GENERATE, Song
from worker.heartmula.prompt import Prompt, n_positions, refuse_oversized
from worker.heartmula.stepper import Stepper


@dataclass(frozen=True)
class Grid:
    """Where songs are cut. `most`: positions that the model has.

    `chunk`: positions that are filled at once, of which `every` is a multiple. `fills_anew`: see above.
    """

    every: int
    chunk: int
    fills_anew: bool
    most: int


class SongPlan:
    """Implements `worker.decoding.plan.Plan`.

    `prompt_of` returns a song's prompt. `make_room` is given the positions that the song takes.
    """

    def __init__(
        self,
        work: Work,
        stepper: Stepper,
        prompt_of: Callable[[Song], Prompt],
        make_room: Callable[[int], None],
        grid: Grid,
    ):
        self.work = work
        self._stepper, self._prompt_of, self._make_room, self._grid = stepper, prompt_of, make_room, grid
        self._n_made = int((work.tokens != TO_GENERATE).all(axis=0).sum())
        self._before = 0  # positions before the first frame's
        self._first: int | None = None  # the position at which the pass in the slot was opened
        self._n_wanted = 0  # frames, when it is complete

    @property
    def is_complete(self) -> bool:
        """See Plan."""
        return bool(self._n_made == self.work.tokens.shape[1])

    def begin(self, slot: int) -> None:
        """See Plan. Raises BadInput for a song that the model has not enough positions for."""
        prompt = self._prompt_of(self.work.song)
        refuse_oversized(prompt.n_positions, self.work.song.seconds, self._grid.most)
        self._make_room(n_positions(prompt.n_positions, self.work.tokens.shape[1]))
        self._stepper.set_text(slot, prompt)
        self._before = prompt.n_positions - 1

    def open(self, slot: int) -> Pass:
        """See Plan."""
        grid, tokens = self._grid, self.work.tokens
        position = self._before + self._n_made
        n_kept = 0
        if self._first is not None:
            n_kept = self._first // grid.chunk * grid.chunk if grid.fills_anew else position
        uniform = draws(self.work.song.seed, 0, tokens.shape[1], len(tokens))
        self._stepper.open(slot, tokens[:, : self._n_made], uniform, n_kept)
        last = min((position // grid.every + 1) * grid.every, self._before + tokens.shape[1])
        self._first, self._n_wanted = position, last - self._before
        return Pass(n_kept, position, last)

    def save(self, slot: int) -> None:
        """See Plan."""
        self._n_made = self._stepper.progress(slot + 1)[slot].n_made
        self.work.tokens[:, : self._n_made] = self._stepper.read(slot, self._n_made)

    def close(self) -> None:
        """See Plan."""
        if self._n_made < self._n_wanted:
            self.work.tokens = np.ascontiguousarray(self.work.tokens[:, : self._n_made])

    def n_done(self, position: int) -> int:
        """See Plan."""
        return position - self._before
