"""Attention in a decoding step: one query per row, over that row's own number of cached columns.

Two variants with one interface. `Sdpa` is torch's, with a mask over a length bucket. No other
attention in torch runs on a T4 (the flash kernels need Ampere and take no mask) and can be captured
in a CUDA graph, which needs fixed shapes: the bucket's. `Compiled` is a small C kernel for CPUs,
where SDPA with one query reaches a tenth of the memory bandwidth (kernels.py builds it).
"""

import logging
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.musicgen.kernels import POINTER, SIZE, NoCompiler, build

log = logging.getLogger(__name__)


class New(NamedTuple):
    """Each row's newest key and value [rows, heads, head], for the last column of its length."""

    key: Tensor
    value: Tensor
    row: Tensor  # [rows]: 0, 1, ...
    column: Tensor  # [rows]: lengths - 1


class Attention(Protocol):
    """Attend to the first `lengths[row]` columns of each row's cache."""

    name: str
    reads_masked: bool  # columns beyond a row's length are read, so they must be finite

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """Lengths [rows] (int64, at most `bucket`) in the form `__call__` needs; all layers share it."""

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor, new: New | None = None
    ) -> Tensor:
        """query [rows, heads, head], keys and values [rows, heads, capacity, head] -> like query.

        Writes `new` into keys and values first.
        """


class Sdpa:
    """torch's scaled dot product attention (SDPA), masked to each row's length."""

    name = "sdpa"
    reads_masked = True

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> bool [rows, 1, 1, bucket]."""
        return (torch.arange(bucket, device=lengths.device) < lengths[:, None])[:, None, None]

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor, new: New | None = None
    ) -> Tensor:
        """See Attention. Reads the columns of the bucket only."""
        if new:
            keys[new.row, :, new.column] = new.key
            values[new.row, :, new.column] = new.value
        bucket = reach.shape[-1]
        attended = F.scaled_dot_product_attention(
            query.unsqueeze(2), keys[:, :, :bucket], values[:, :, :bucket], attn_mask=reach
        )
        return attended.squeeze(2)


class Compiled:
    """The C kernel of attention.c for one head size and cache type."""

    name = "compiled"
    reads_masked = False

    def __init__(self, head: int, dtype: torch.dtype):
        flags = ("-ffast-math", f"-DHEAD={head}", f"-DKV_BF16={int(dtype == torch.bfloat16)}")
        takes = (*[POINTER] * 3, SIZE, *[POINTER] * 3, *[SIZE] * 3, *[POINTER] * 2)
        self._attend = build("attention.c", "attend", takes, flags)
        self._scores = torch.empty(0)

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> int64 [rows]; the kernel reads no column beyond a row's length."""
        return lengths.contiguous()

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor, new: New | None = None
    ) -> Tensor:
        """See Attention. Accumulates in float32."""
        n_rows, n_heads, capacity, head = keys.shape
        if self._scores.numel() < n_rows * n_heads * capacity:
            self._scores = torch.empty(n_rows * n_heads * capacity)
        # The kernel reads them in place, as slices of one QKV product.
        if any(x.stride() != (query.stride(0), head, 1) for x in (query, *(new[:2] if new else ()))):
            raise ValueError("query, key and value must have the same strides, with a row's heads contiguous")
        output = torch.empty(n_rows, n_heads, head)
        self._attend(
            query.data_ptr(),
            new.key.data_ptr() if new else None,
            new.value.data_ptr() if new else None,
            query.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            reach.data_ptr(),
            n_rows,
            n_heads,
            capacity,
            self._scores.data_ptr(),
            output.data_ptr(),
        )
        return output.to(query.dtype)


def best(head: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """The fastest variant that runs on this machine."""
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        try:
            return Compiled(head, dtype)
        except NoCompiler as error:
            log.info("attention without a compiled kernel (%s): slower, same songs", error)
    return Sdpa()
