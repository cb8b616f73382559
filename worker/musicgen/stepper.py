"""All slots' columns on the device, and the step that advances every running slot by one column.

A slot holds one window of one song (see windows.py). A step computes the first slots only, as many as
are in use. On CUDA it is replayed as a graph, one for each length bucket and each power of two of
slots, and nothing in it waits for the device.
"""

from collections.abc import Callable

import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine import TO_GENERATE, Sampling
from worker.musicgen.model import Cache, CacheSize, Model
from worker.musicgen.sampling import guide, pick

# Masked attention reads a whole bucket. Smaller buckets read less but need more CUDA graphs.
_BUCKET = 128
# Text tokens that the cache holds at first; a longer prompt makes it grow.
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
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}

    def reset(self, sampling: Sampling) -> None:
        """Empty all slots, and choose tokens with this sampling from now on."""
        if sampling != self._sampling:
            self._sampling = sampling
            self._graphs.clear()  # they were captured with the old sampling
        self._running[:], self._position[:] = False, 0
        for slot in range(self.slots):
            self.leave(slot)

    def set_text(self, slot: int, states: Tensor) -> None:
        """Set the text of a slot's song: states [n_text, hidden]."""
        room, self._n_text[slot] = self._cache.n_text, len(states)
        self._model.set_text(states, slot, self._cache)
        if self._cache.n_text != room:
            self._graphs.clear()  # they read the old, smaller buffers

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
        if self._cache.n_text > TEXT_ROOM >= max(self._n_text):
            self._cache.resize_text(TEXT_ROOM)
            self._graphs.clear()  # they read the old, larger buffers

    def read(self, slot: int, n: int) -> "NDArray":  # type: ignore[type-arg]
        """The slot's first n columns, [codebooks, n]. Waits for the device."""
        return self._columns[slot, :n].T.cpu().numpy()

    def mark(self) -> Callable[[], None]:
        """A function that waits until the device has made all steps so far."""
        if self._model.placement.device.type != "cuda":
            return lambda: None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event.synchronize

    def is_broken(self, slot: int) -> bool:
        """True if the slot's logits were not finite at some step. Waits for the device."""
        return bool(self._broken[slot])

    def step(self, n_reached: int, n_slots: int) -> None:
        """Advance the running ones of the first `n_slots` slots by one column.

        Each of them must be before column `n_reached`.
        """
        bucket = min(-(-n_reached // _BUCKET) * _BUCKET, self._n_columns)
        if self._model.placement.device.type != "cuda":
            self._advance(bucket, n_slots)
            return
        captured = bucket, min(1 << (n_slots - 1).bit_length(), self.slots)
        if captured not in self._graphs:
            # The first step of its kind runs without a graph: it initialises what a capture must not.
            self._graphs[captured] = None
            self._advance(*captured)
        else:
            graph = self._graphs[captured]
            if graph is None:
                graph = self._graphs[captured] = torch.cuda.CUDAGraph()
                # Another thread may be decoding: capture this thread's calls only.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._advance(*captured)
            graph.replay()

    def _advance(self, bucket: int, n_slots: int) -> None:
        slot, position, running = self._slot[:n_slots], self._position[:n_slots], self._running[:n_slots]
        tokens = self._columns[slot, position]
        conditional, unconditional = self._model.step(tokens, position, bucket, self._cache)
        logits = guide(conditional, unconditional, self._sampling.guidance_scale)
        column = position + 1
        chosen = pick(logits, self._uniform[slot, column], self._sampling)
        known = self._columns[slot, column]
        wanted = (known == TO_GENERATE) & running[:, None]
        self._columns[slot, column] = torch.where(wanted, chosen, known)
        self._broken[:n_slots] |= running & ~logits.isfinite().flatten(1).all(1)
        position += running
