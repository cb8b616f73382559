"""All slots' columns on the device, and the one step that moves every running slot a column on.

A slot holds one window of one song (see windows.py). Idle slots are computed too: with shapes
that never change, a song's rounding does not depend on its company. On CUDA the step is replayed
as a graph, one for each length bucket, and nothing in it waits for the device.
"""

import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine import TO_GENERATE, Sampling
from worker.musicgen.model import Cache, CacheSize, Model
from worker.musicgen.sampling import guide, pick

# Attention that is masked reads a whole bucket: finer ones read less, but are more CUDA graphs.
_BUCKET = 128
# A prompt of more tokens than this makes room for itself.
TEXT_ROOM = 64


class Stepper:
    """`slots` windows in work. Not thread-safe."""

    def __init__(self, model: Model, slots: int, n_columns: int):
        shape, device = model.shape, model.placement.device
        self.slots, self._n_columns, self._model = slots, n_columns, model
        self._sampling = Sampling()
        self.special = shape.vocabulary
        self._cache = Cache(shape, CacheSize(slots, n_columns, TEXT_ROOM), model.placement, model.attention)
        # One column more than a window has: an idle slot looks at the one after its own.
        size = (slots, n_columns + 1, shape.n_codebooks)
        self._columns = torch.full(size, self.special, dtype=torch.int64, device=device)
        self._uniform = torch.zeros(size, device=device)
        self._position = torch.zeros(slots, dtype=torch.int64, device=device)
        self._running = torch.zeros(slots, dtype=torch.bool, device=device)
        self._broken = torch.zeros(slots, dtype=torch.bool, device=device)
        self._slot = torch.arange(slots, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def reset(self, sampling: Sampling) -> None:
        """Empty all slots, and choose tokens this way from now on."""
        if sampling != self._sampling:
            self._sampling = sampling
            self._graphs.clear()  # they hold the old way
        self._running[:], self._position[:] = False, 0

    def set_text(self, slot: int, states: Tensor) -> None:
        """Give a slot its song's text: states [n_text, hidden]."""
        room = self._cache.n_text
        self._model.set_text(states, slot, self._cache)
        if self._cache.n_text != room:
            self._graphs.clear()  # they read the smaller buffers

    def open(self, slot: int, columns: NDArray, uniform: NDArray, position: int) -> None:  # type: ignore[type-arg]
        """Lay a window into a slot: columns [codebooks, n], draws [n, codebooks].

        `position`: the last known column, which the first step feeds. Call `fill` for those before.
        """
        n = columns.shape[1]
        self._columns[slot] = self.special
        self._columns[slot, :n] = torch.from_numpy(columns.T.copy())
        self._uniform[slot, :n] = torch.from_numpy(uniform)
        self._position[slot] = position
        self._broken[slot] = False

    def fill(self, slot: int, start: int, end: int) -> None:
        """Bring columns [start, end) of a slot into the cache."""
        self._model.fill(self._columns[slot, start:end], start, slot, self._cache)

    def start(self, slot: int) -> None:
        """From the next step on the slot moves."""
        self._running[slot] = True

    def stop(self, slot: int) -> None:
        """The slot idles, looking at the special column alone."""
        self._running[slot] = False
        self._position[slot] = 0

    def read(self, slot: int, n: int) -> "NDArray":  # type: ignore[type-arg]
        """The slot's first n columns, [codebooks, n]. Waits for the device."""
        return self._columns[slot, :n].T.cpu().numpy()

    def is_broken(self, slot: int) -> bool:
        """True if the slot's logits were not finite at some step. Waits for the device."""
        return bool(self._broken[slot])

    def step(self, n_reached: int) -> None:
        """One column on for every running slot; no slot may be at or beyond column `n_reached`."""
        bucket = min(-(-n_reached // _BUCKET) * _BUCKET, self._n_columns)
        if self._model.placement.device.type != "cuda":
            self._advance(bucket)
        elif bucket not in self._graphs:
            # The first step of a bucket runs as it is: it warms up what a capture must not start.
            self._graphs[bucket] = None
            self._advance(bucket)
        else:
            graph = self._graphs[bucket]
            if graph is None:
                graph = self._graphs[bucket] = torch.cuda.CUDAGraph()
                # Another thread may be decoding: only this one's calls belong to the capture.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._advance(bucket)
            graph.replay()

    def _advance(self, bucket: int) -> None:
        tokens = self._columns[self._slot, self._position]
        conditional, unconditional = self._model.step(tokens, self._position, bucket, self._cache)
        logits = guide(conditional, unconditional, self._sampling.guidance_scale)
        column = self._position + 1
        chosen = pick(logits, self._uniform[self._slot, column], self._sampling)
        known = self._columns[self._slot, column]
        wanted = (known == TO_GENERATE) & self._running[:, None]
        self._columns[self._slot, column] = torch.where(wanted, chosen, known)
        self._broken |= self._running & ~logits.isfinite().flatten(1).all(1)
        self._position += self._running
