"""The memory that a model and its songs in progress take on a GPU, by arithmetic."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from worker.musicgen.cache import Cache
from worker.musicgen.layers import Shape
from worker.musicgen.stepper import TEXT_ROOM


@dataclass(frozen=True)
class Needs:
    """Bytes on the device.

    decoder: its weights, in the engine's precision. beside: text encoder and codec, fp32.
    cache: keys and values of one slot. columns: its tokens and draws.
    """

    decoder: int
    beside: int
    cache: int
    columns: int

    @classmethod
    def of(cls, shape: Shape, ffn: int, n_columns: int, dtype: torch.dtype, beside: int) -> "Needs":
        """Of a decoder with these dimensions and windows of `n_columns`."""
        # Tokens are int64, draws float32.
        columns = (n_columns + 1) * shape.n_codebooks * (8 + 4)
        cache = Cache.n_bytes(shape, n_columns, TEXT_ROOM, dtype)
        return cls(decoder_bytes(shape, ffn, n_columns, dtype), beside, cache, columns)

    def total(self, slots: int) -> int:
        """With this many slots, without what a step, a fill and decoding need for a moment."""
        return self.decoder + self.beside + slots * (self.cache + self.columns)


def decoder_bytes(shape: Shape, ffn: int, n_columns: int, dtype: torch.dtype) -> int:
    """Bytes of a decoder's weights, with the position embeddings of one window."""
    hidden = shape.hidden
    attention = 4 * hidden * hidden  # query, key, value, output: once for the song, once for the text
    norm = 2 * hidden
    layer = 2 * attention + 2 * hidden * ffn + 3 * norm
    heads = shape.n_codebooks * shape.vocabulary * hidden
    embeddings = shape.n_codebooks * (shape.vocabulary + 1) * hidden
    positions = n_columns * hidden
    return (shape.n_layers * layer + norm + heads + embeddings + positions) * int(dtype.itemsize)


def module_bytes(modules: Iterable[torch.nn.Module | None]) -> int:
    """Bytes of the modules' weights."""
    return sum(
        tensor.nbytes for module in modules if module for tensor in (*module.parameters(), *module.buffers())
    )
