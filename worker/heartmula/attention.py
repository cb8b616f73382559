"""Grouped-query attention of new positions, each over all positions up to it in its cache row.

One interface for a step (one new position in each row), a chunk of a prompt (many in one slot's rows) and
the depth decoder. Both variants rotate queries and keys first (Su et al. 2021) and keep the new keys and
values. Heads are grouped: the cache holds a key and a value once for all heads that share them.

* `Sdpa`: torch's scaled dot product attention, with a mask. It runs everywhere.
* `Compiled`: the C kernel of attention.c for CPUs. A position's result does not depend on the others.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.decoding.kernels import POINTER, SIZE, NoCompiler, build
from worker.models.heartmula_config import Flavour

# Of Llama 3.2: the rotary base, and how its slow pairs are slowed down for longer inputs.
_BASE, _FACTOR, _LOW, _HIGH, _OLD_LENGTH = 500_000, 32, 1, 4, 8192


class Place(NamedTuple):
    """Where new positions are: `position` [rows, n] (int64), in the cache rows from `first_row` on.

    Ascending in each row, and below `reach`.
    """

    first_row: int
    position: Tensor
    reach: int


class Attention(Protocol):
    """Rotate, keep and attend."""

    name: str  # as records hold it
    # Columns beyond a position are read, up to the reach: they must be finite.
    reads_masked: bool

    def plan(self, place: Place) -> Any:
        """What all layers share of a place."""

    def __call__(self, qkv: Tensor, cached: Tensor, plan: Any) -> Tensor:
        """qkv [rows * n, (heads + 2 * kv heads) * head] -> [rows * n, heads * head].

        cached [2, rows of the cache, kv heads, columns, head]: keys and values of a layer.
        """


def rotations(head: int, n_positions: int) -> Tensor:
    """The turn of each pair (0, 1), (2, 3), ... of a head at a position: complex64 [n_positions, head / 2].

    With Llama 3's scaling: a pair that turns less than `_LOW` times in the old length is slowed down by
    `_FACTOR`, one that turns more than `_HIGH` times is left, and between them it changes linearly.
    """
    frequency = 1.0 / (_BASE ** (torch.arange(0, head, 2).float() / head))
    turns = _OLD_LENGTH / (2 * math.pi / frequency)
    left = ((turns - _LOW) / (_HIGH - _LOW)).clamp(0, 1)
    angle = torch.outer(
        torch.arange(n_positions).float(), (1 - left) * frequency / _FACTOR + left * frequency
    )
    return torch.complex(angle.cos(), angle.sin())


class _Shared(NamedTuple):
    row: Tensor
    position: Tensor
    rotation: Tensor
    mask: Tensor
    rows: slice


class Sdpa(Attention):
    """torch's scaled dot product attention; a group's heads are queries of their one key and value head."""

    name = "sdpa"
    reads_masked = True

    def __init__(self, sizes: Flavour, rotation: Tensor, dtype: torch.dtype):
        self._heads, self._kv_heads = sizes.heads, sizes.kv_heads
        self._rotation, self._dtype = rotation, dtype

    def plan(self, place: Place) -> _Shared:
        """See Attention. The mask is what is added to the scores: [rows, 1, n * group, reach]."""
        position, group = place.position, self._heads // self._kv_heads
        n_rows = len(position)
        row = torch.arange(place.first_row, place.first_row + n_rows, device=position.device)
        beyond = torch.arange(place.reach, device=position.device) > position[..., None]
        mask = torch.zeros(beyond.shape, dtype=self._dtype, device=position.device)
        mask = mask.masked_fill_(beyond, -torch.inf).repeat_interleave(group, 1)[:, None]
        rows = slice(place.first_row, place.first_row + n_rows)
        return _Shared(row[:, None], position, self._rotation[position][:, :, None], mask, rows)

    def __call__(self, qkv: Tensor, cached: Tensor, plan: _Shared) -> Tensor:
        """See Attention. Reads the columns below the reach only."""
        n_rows, n = plan.position.shape
        heads, kv_heads, head = self._heads, self._kv_heads, cached.shape[-1]
        qkv = qkv.view(n_rows, n, heads + 2 * kv_heads, head)
        pairs = qkv[:, :, : heads + kv_heads].float().view(n_rows, n, -1, head // 2, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * plan.rotation).flatten(-2).to(qkv.dtype)
        query, key = turned[:, :, :heads], turned[:, :, heads:]
        cached[:, plan.row, :, plan.position] = torch.stack((key, qkv[:, :, heads + kv_heads :]), 2)
        keys, values = cached[:, plan.rows, :, : plan.mask.shape[-1]]
        query = query.reshape(n_rows, n, kv_heads, -1, head).transpose(1, 2).flatten(2, 3)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=plan.mask)
        attended = attended.view(n_rows, kv_heads, n, -1, head).transpose(1, 2)
        return attended.reshape(n_rows * n, heads * head)


class Compiled(Attention):
    """The C kernel for one model's heads. Raises NoCompiler."""

    name = "compiled"
    reads_masked = False

    def __init__(self, sizes: Flavour, rotation: Tensor, dtype: torch.dtype):
        self._heads, self._kv_heads, self._head = sizes.heads, sizes.kv_heads, sizes.width // sizes.heads
        self._group = self._heads // self._kv_heads
        narrow = int(dtype == torch.bfloat16)
        shape = (f"-DHEAD={self._head}", f"-DGROUP={self._group}", f"-DKV_BF16={narrow}")
        takes = (*[POINTER] * 6, *[SIZE] * 4, *[POINTER] * 2, SIZE)
        self._attend = build(
            Path(__file__).with_name("attention.c"), "attend", takes, ("-ffast-math", *shape)
        )
        self._rotation = rotation.contiguous()

    def plan(self, place: Place) -> tuple[Tensor, Tensor]:
        """See Attention. -> row and position of each new position, int64 [rows * n]."""
        n_rows, n = place.position.shape
        row = torch.arange(place.first_row, place.first_row + n_rows).repeat_interleave(n)
        return row, place.position.flatten().contiguous()

    def __call__(self, qkv: Tensor, cached: Tensor, plan: tuple[Tensor, Tensor]) -> Tensor:
        """See Attention."""
        row, position = plan
        keys, values = cached
        n_new, capacity, threads = len(row), cached.shape[3], torch.get_num_threads()
        # Each thread's begin at a multiple of 64 bytes: sums over them are vectorised alike.
        n_scores = -(-capacity // 16) * 16
        scores = torch.empty(threads * self._group * n_scores)
        output = torch.empty(n_new, self._heads * self._head)
        self._attend(
            *_addresses(qkv.contiguous(), self._rotation, row, position, keys, values),
            *(n_new, self._kv_heads, capacity, n_scores),
            *_addresses(scores, output),
            threads,
        )
        return output.to(qkv.dtype)


def _addresses(*tensors: Tensor) -> Sequence[int]:
    return [tensor.data_ptr() for tensor in tensors]


def best(sizes: Flavour, n_positions: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """The fastest variant that runs on this machine, for positions below `n_positions`."""
    rotation = rotations(sizes.width // sizes.heads, n_positions).to(device)
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        try:
            return Compiled(sizes, rotation, dtype)
        except NoCompiler:
            pass
    return Sdpa(sizes, rotation, dtype)
