"""The keys and values of the songs in progress, preallocated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.musicgen.attention import Attention
from worker.musicgen.layers import Placement, Shape


@dataclass(frozen=True)
class CacheSize:
    """How much a cache holds at first; texts may grow beyond `n_text`."""

    slots: int
    n_columns: int
    n_text: int  # tokens


class Cache:
    """Keys and values of every slot: of the song so far, and of its text; keys first where both are.

    own[layer]  [2, rows, heads, n_columns, head]; a slot has one row in layer 0, else two
    text        [2, layers, slots, heads, n_text, head]; text_lengths [slots]
    row         0, 1, ... for each row

    The order of the dimensions in memory is the attention's.
    """

    def __init__(self, shape: Shape, size: CacheSize, placement: Placement, attention: Attention):
        self._attention, self._placement = attention, placement
        self.slots, layers = size.slots, range(shape.n_layers)
        rows = [self.slots if i == 0 else 2 * self.slots for i in layers]
        self.own = [self._blank((2, n, shape.n_heads, size.n_columns, shape.head)) for n in rows]
        if attention.reads_masked:
            for kv in self.own:
                kv.zero_()  # else it takes no memory of a CPU until it is written
        text = (2, shape.n_layers, self.slots, shape.n_heads, size.n_text, shape.head)
        self.text = self._blank(text).zero_()
        self.text_lengths = torch.ones(self.slots, dtype=torch.int64, device=placement.device)
        self.row = torch.arange(2 * self.slots, device=placement.device)

    def _blank(self, size: tuple[int, ...]) -> Tensor:
        return self._attention.blank(size, self._placement.cache_dtype, self._placement.device)

    @staticmethod
    def n_bytes(shape: Shape, n_columns: int, n_text: int, dtype: torch.dtype) -> int:
        """Bytes of cache per slot."""
        columns = (2 * shape.n_layers - 1) * n_columns + shape.n_layers * n_text
        return 2 * columns * shape.hidden * int(dtype.itemsize)

    @property
    def n_text(self) -> int:
        """The longest text that fits, in tokens."""
        return self.text.shape[4]

    def move(self, source: int, target: int, n_columns: int) -> None:
        """Copy what a slot holds, in its first `n_columns`, to another slot."""
        for i, kv in enumerate(self.own):
            kv[:, rows_of(target, i), :, :n_columns] = kv[:, rows_of(source, i), :, :n_columns]
        self.text[:, :, target] = self.text[:, :, source]
        self.text_lengths[target] = self.text_lengths[source]

    def resize_text(self, n_text: int) -> None:
        """Make room for longer texts, or give it back, and keep the texts that fit."""
        *leading, old, head = self.text.shape
        kept, there = min(old, n_text), self.text
        self.text = self._blank((*leading, n_text, head)).zero_()
        self.text[..., :kept, :] = there[..., :kept, :]
        self.text_lengths.clamp_(max=n_text)


def rows_of(slot: int, layer: int) -> slice:
    """A slot's rows in the cache of a layer."""
    return slice(slot, slot + 1) if layer == 0 else slice(2 * slot, 2 * slot + 2)
