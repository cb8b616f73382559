"""Attention in a decoding step: one query per row, over that row's own number of cached columns.

Three variants with one interface. All can be captured in a CUDA graph, which needs fixed shapes.

* `Varlen`: torch's flash attention, on GPUs from Ampere on. It takes each row's length from the device.
* `Sdpa`: torch's scaled dot product attention, with a mask over a length bucket. It runs everywhere.
* `Compiled`: a small C kernel for CPUs, where SDPA with one query reaches a tenth of the memory
  bandwidth (kernels.py builds it).
"""

import logging
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn_out

from worker.decoding.kernels import POINTER, SIZE, NoCompiler, build

log = logging.getLogger(__name__)


class New(NamedTuple):
    """Each row's newest key and value, for the last column of its length."""

    kv: Tensor  # [rows, 2, heads, head]
    row: Tensor  # [rows]: 0, 1, ...
    column: Tensor  # [rows]: lengths - 1

    def write(self, cached: Tensor) -> None:
        """Into keys and values [2, rows, heads, columns, head], at once."""
        cached[:, self.row, :, self.column] = self.kv


class Attention(Protocol):
    """Attend to the first `lengths[row]` columns of each row's cache."""

    name: str
    # Columns beyond a row's length are read, up to the bucket: they must be finite.
    reads_masked: bool

    def blank(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised cache [..., heads, columns, head], in memory as this attention reads it."""
        return torch.empty(size, dtype=dtype, device=device)

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """Lengths [rows] (int64, at most `bucket`) in the form `__call__` needs; all layers share it."""

    def __call__(self, query: Tensor, cached: Tensor, reach: Tensor, new: New | None = None) -> Tensor:
        """query [rows, heads, head], keys and values [2, rows, heads, columns, head] -> like query.

        Writes `new` into the cache first.
        """


class Varlen(Attention):
    """torch's flash attention over rows of different lengths. fp16 and bf16.

    It splits no row over its columns (torch 2.13 does that for paged caches only), so a row does not
    depend on the number of rows.
    """

    name = "varlen"
    reads_masked = False

    def __init__(self) -> None:
        self._starts: dict[tuple[int, int], Tensor] = {}

    def blank(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """See Attention. In memory [..., columns, heads, head]."""
        *leading, heads, columns, head = size
        return torch.empty(*leading, columns, heads, head, dtype=dtype, device=device).transpose(-3, -2)

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> int32 [rows]; no column beyond a row's length is read."""
        return lengths.int()

    def __call__(self, query: Tensor, cached: Tensor, reach: Tensor, new: New | None = None) -> Tensor:
        """See Attention."""
        if new:
            new.write(cached)
        _, n_rows, n_heads, columns, head = cached.shape
        # A view of the rows' columns, one row after another; `view` raises rather than copy the cache.
        keys, values = cached.transpose(2, 3).view(2, n_rows * columns, n_heads, head)
        attended = query.new_empty(query.shape)
        varlen_attn_out(
            attended,
            query,
            keys,
            values,
            self._starts_of(n_rows, 1, query.device),
            self._starts_of(n_rows, columns, query.device),
            max_q=1,
            max_k=columns,
            seqused_k=reach,
        )
        return attended

    def _starts_of(self, n_rows: int, columns: int, device: torch.device) -> Tensor:
        """Where each row of so many columns starts, and the end: int32 [n_rows + 1]. Made once."""
        if (n_rows, columns) not in self._starts:
            ends = torch.arange(n_rows + 1, dtype=torch.int32, device=device)
            self._starts[n_rows, columns] = ends * columns
        return self._starts[n_rows, columns]


class Sdpa(Attention):
    """torch's scaled dot product attention (SDPA), masked to each row's length."""

    name = "sdpa"
    reads_masked = True

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> what is added to the scores, [rows, 1, 1, bucket]: SDPA would convert a mask in each layer."""
        beyond = torch.arange(bucket, device=lengths.device) >= lengths[:, None]
        mask = torch.zeros(beyond.shape, dtype=self._dtype, device=lengths.device)
        return mask.masked_fill_(beyond, -torch.inf)[:, None, None]

    def __call__(self, query: Tensor, cached: Tensor, reach: Tensor, new: New | None = None) -> Tensor:
        """See Attention. Reads the columns of the bucket only."""
        if new:
            new.write(cached)
        keys, values = cached[..., : reach.shape[-1], :]
        attended = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=reach)
        return attended.squeeze(2)


class Compiled(Attention):
    """The C kernel of attention.c for one head size and cache type."""

    name = "compiled"
    reads_masked = False

    def __init__(self, head: int, dtype: torch.dtype):
        flags = ("-ffast-math", f"-DHEAD={head}", f"-DKV_BF16={int(dtype == torch.bfloat16)}")
        takes = (*[POINTER] * 3, SIZE, *[POINTER] * 3, *[SIZE] * 3, *[POINTER] * 2)
        self._attend = build(Path(__file__).with_name("attention.c"), "attend", takes, flags)
        self._scores = torch.empty(0)

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> int64 [rows]; the kernel reads no column beyond a row's length."""
        return lengths.contiguous()

    def __call__(self, query: Tensor, cached: Tensor, reach: Tensor, new: New | None = None) -> Tensor:
        """See Attention. Accumulates in float32."""
        keys, values = cached
        key, value = new.kv.unbind(1) if new else (None, None)
        n_rows, n_heads, capacity, head = keys.shape
        if self._scores.numel() < n_rows * n_heads * capacity:
            self._scores = torch.empty(n_rows * n_heads * capacity)
        # The kernel reads them in place, as slices of one QKV product.
        in_place = [x for x in (query, key, value) if x is not None]
        if any(x.stride() != (query.stride(0), head, 1) for x in in_place):
            raise ValueError("query, key and value must have the same strides, with a row's heads contiguous")
        output = torch.empty(n_rows, n_heads, head)
        self._attend(
            query.data_ptr(),
            key.data_ptr() if key is not None else None,
            value.data_ptr() if value is not None else None,
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
        except NoCompiler:
            pass
    return Varlen() if _has_flash(head, dtype, device) else Sdpa(dtype)


def _has_flash(head: int, dtype: torch.dtype, device: torch.device) -> bool:
    """True where torch's flash attention runs: its kernel checks the same."""
    fits = dtype in (torch.float16, torch.bfloat16) and head % 8 == 0 and head <= 256
    if device.type != "cuda" or not fits or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
