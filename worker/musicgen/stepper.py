"""All slots' columns on the device, and the step that advances every running slot by one column.

A slot holds one window of one song (see windows.py). A step computes the first slots only, as many as
are in use. On CUDA it is replayed as a graph, and nothing in it waits for the device. There is a graph for
each power of two of slots; where the attention reads masked columns, for each bucket of columns too.

All graphs are captured in `reset`, before the songs start. They read the text cache, so they are captured
again when its room changes, which is when a song with a long prompt begins or the last such song ends.
"""

from collections.abc import Callable

import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.amounts import count
from worker.decoding import device
from worker.decoding.graphs import Graphs
from worker.decoding.sampling import guide, pick
from worker.engine import TO_GENERATE, Sampling
from worker.errors import BadInput
from worker.musicgen.cache import Cache, CacheSize
from worker.musicgen.model import Model

# Masked attention reads a whole bucket. Smaller buckets read less but need more CUDA graphs.
_BUCKET = 256
# Text tokens that the cache holds at first; a longer prompt makes it grow to the next power of two.
TEXT_ROOM = 64


class Stepper:
    """One window in each of `slots` slots. Not thread-safe."""

    def __init__(self, model: Model, slots: int, n_columns: int):
        shape, device = model.shape, model.placement.device
        self.slots, self._n_columns, self._model = slots, n_columns, model
        self._sampling = Sampling()
        self.special, self.dtype = shape.vocabulary, model.placement.dtype
        self._cache = Cache(shape, CacheSize(slots, n_columns, TEXT_ROOM), model.placement, model.attention)
        # One column more than a window has: a slot that has ended still reads the column after its last.
        size = (slots, n_columns + 1, shape.n_codebooks)
        self._columns = torch.full(size, self.special, dtype=torch.int64, device=device)
        self._uniform = torch.zeros(size, device=device)
        self._position = torch.zeros(slots, dtype=torch.int64, device=device)
        self._running = torch.zeros(slots, dtype=torch.bool, device=device)
        self._broken = torch.zeros(slots, dtype=torch.bool, device=device)
        self._slot = torch.arange(slots, device=device)
        self._n_text = [0] * slots
        # How many columns a step reads: there is a graph for each of them.
        masked = model.attention.reads_masked
        self._buckets = [*range(_BUCKET, n_columns, _BUCKET), n_columns] if masked else [n_columns]
        self._graphs = Graphs(device, slots)

    def reset(self, sampling: Sampling) -> None:
        """Empty all slots, and choose tokens with this sampling from now on."""
        self._sampling = sampling
        self._running[:], self._position[:] = False, 0
        self._n_text = [0] * self.slots
        self._fit_text(0)

    def set_text(self, slot: int, states: Tensor) -> None:
        """Set the text of a slot's song: states [n_text, hidden]."""
        self._n_text[slot] = len(states)
        self._fit_text(len(states))
        self._model.set_text(states, slot, self._cache)

    def open(self, slot: int, columns: NDArray, uniform: NDArray, position: int) -> None:  # type: ignore[type-arg]
        """Put a window into a slot: columns [codebooks, n], draws [n, codebooks].

        `position`: the last known column, which the first step feeds. Call `fill` for the ones before.
        """
        n = columns.shape[1]
        self._columns[slot] = self.special
        self._columns[slot, :n] = torch.from_numpy(columns.T.copy())
        self._uniform[slot, :n] = torch.from_numpy(uniform)
        self._position[slot] = position
        self._broken[slot] = False

    def fill(self, slot: int, start: int, end: int) -> None:
        """Compute the keys and values of columns [start, end) of a slot."""
        self._model.fill(self._columns[slot, start:end], start, slot, self._cache)

    def start(self, slot: int) -> None:
        """Let the slot advance from the next step on."""
        self._running[slot] = True

    def stop(self, slot: int) -> None:
        """Make the slot idle; it attends to column 0 only."""
        self._running[slot] = False
        self._position[slot] = 0

    def move(self, source: int, target: int, n_filled: int) -> None:
        """Move a song into an idle slot, with the keys and values of its first `n_filled` columns."""
        for of_slots in (self._columns, self._uniform, self._position, self._running, self._broken):
            of_slots[target] = of_slots[source]
        self._cache.move(source, target, n_filled)
        self._n_text[target], self._n_text[source] = self._n_text[source], 0
        self.stop(source)

    def leave(self, slot: int) -> None:
        """The slot's song is over; the room that only its text needed is given back."""
        self._n_text[slot] = 0
        if max(self._n_text) <= TEXT_ROOM:
            self._fit_text(0)

    def _fit_text(self, n_text: int) -> None:
        """Make room for a text of this length, or give back what is over TEXT_ROOM if it is 0."""
        room = max(TEXT_ROOM, 1 << max(n_text - 1, 0).bit_length(), self._cache.n_text if n_text else 0)
        if room > self._cache.n_text:
            self._check_room(room, n_text)
        if room != self._cache.n_text:
            self._cache.resize_text(room)
        # No song advances meanwhile: the step only repeats their last columns.
        self._graphs.capture((self._sampling, room), self._buckets, self._advance, self._running)

    def _check_room(self, room: int, n_text: int) -> None:
        """Raises BadInput if memory has no room for texts of this length in all slots."""
        needed = self._cache.text.nbytes // self._cache.n_text * room
        free = device.free_bytes(self._model.placement.device)
        if free is not None and needed > free:
            raise BadInput(
                f"its prompt has {n_text} tokens: with {count(self.slots, 'slot')} that takes "
                f"{needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free; shorten it, or use fewer slots"
            )

    def read(self, slot: int, n: int) -> "NDArray":  # type: ignore[type-arg]
        """The slot's first n columns, [codebooks, n]. Waits for the device."""
        return self._columns[slot, :n].T.cpu().numpy()

    def mark(self) -> Callable[[], None]:
        """A function that waits until the device has made all steps so far."""
        return device.mark(self._model.placement.device)

    def is_broken(self, slot: int) -> bool:
        """True if the slot's logits were not finite at some step. Waits for the device."""
        return bool(self._broken[slot])

    def step(self, n_reached: int, n_slots: int) -> None:
        """Advance the running ones of the first `n_slots` slots by one column.

        Each of them must be before column `n_reached`.
        """
        bucket = min(bucket for bucket in self._buckets if bucket >= n_reached)
        self._graphs.run(bucket, n_slots, self._advance)

    def _advance(self, bucket: int, n_slots: int) -> None:
        slot, position = self._slot[:n_slots], self._position[:n_slots]
        running, broken = self._running[:n_slots], self._broken[:n_slots]
        tokens = self._columns[slot, position]
        conditional, unconditional = self._model.step(tokens, position, bucket, self._cache)
        logits = guide(conditional, unconditional, self._sampling.guidance_scale)
        column = position + 1
        chosen = pick(logits, self._uniform[slot, column], self._sampling)
        known = self._columns[slot, column]
        wanted = (known == TO_GENERATE) & running[:, None]
        self._columns[slot, column] = torch.where(wanted, chosen, known)
        # Bound to names: `self._x[:n] |= y` would copy the result to its own place.
        broken |= running & ~logits.isfinite().flatten(1).all(1)
        position += running
