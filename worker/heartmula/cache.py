"""The keys and values of a Llama's positions, preallocated for every slot."""

from dataclasses import dataclass

import torch

from worker.heartmula.layers import Placement
from worker.models.heartmula_config import Flavour


@dataclass(frozen=True)
class CacheSize:
    """How much a cache holds. `halves`: 2 with guidance, else 1."""

    slots: int
    halves: int
    n_columns: int


class Cache:
    """layers[i]: [2, rows, kv heads, columns, head], keys first.

    A slot's row of a half is halves * slot + half; half 0 is conditional.
    """

    def __init__(self, sizes: Flavour, size: CacheSize, placement: Placement):
        self.halves = size.halves
        rows = size.slots * size.halves
        shape = (2, rows, sizes.kv_heads, size.n_columns, sizes.width // sizes.heads)
        # Zeros take no memory of a CPU until something is written; masked attention needs finite numbers.
        self.layers = [
            torch.zeros(shape, dtype=placement.dtype, device=placement.device) for _ in range(sizes.layers)
        ]

    @staticmethod
    def n_bytes(sizes: Flavour, size: CacheSize, dtype: torch.dtype) -> int:
        """Bytes that it takes."""
        columns = size.slots * size.halves * size.n_columns
        return 2 * sizes.layers * columns * sizes.kv_heads * (sizes.width // sizes.heads) * dtype.itemsize

    def rows(self, slot: int, n: int = 1) -> slice:
        """The rows of n slots."""
        return slice(slot * self.halves, (slot + n) * self.halves)

    def move(self, source: int, target: int, n_columns: int) -> None:
        """Copy a slot's first columns to another slot."""
        for kv in self.layers:
            kv[:, self.rows(target), :, :n_columns] = kv[:, self.rows(source), :, :n_columns]

    def widen(self, n_columns: int) -> None:
        """Have so many columns; what they hold stays. One layer after another: there is no second cache."""
        for i, kv in enumerate(self.layers):
            wide = kv.new_zeros(*kv.shape[:3], n_columns, kv.shape[4])
            wide[:, :, :, : kv.shape[3]] = kv
            self.layers[i] = wide

    def clear(self, slot: int) -> None:
        """Replace what a slot holds by zeros."""
        for kv in self.layers:
            kv[:, self.rows(slot)] = 0
