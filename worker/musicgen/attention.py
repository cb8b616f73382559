"""Attention while decoding: one query per row, over that row's own number of cached columns.

Two variants behind one call. `Sdpa` is torch's own, with a mask over a length bucket: it is the
only one torch ships that runs from a T4 (its flash kernels need Ampere and refuse masks) and can
be captured in a CUDA graph, its shapes being the bucket's. `Compiled` is a small C kernel for
CPUs, where SDPA with one query reaches a tenth of the memory's bandwidth; it is built at start if
there is a C compiler, in about a second, and kept nowhere.
"""

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("attention.c")


class Attention(Protocol):
    """Attend to the first `lengths[row]` columns of each row's cache."""

    name: str
    reads_masked: bool  # columns beyond a row's length are read, and must hold numbers

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """What `__call__` needs of the lengths [rows] (int64, at most `bucket`); shared by all layers."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> Tensor:
        """query [rows, heads, head], keys and values [rows, heads, capacity, head] -> like query."""


class Sdpa:
    """torch's scaled dot product attention, masked to each row's length."""

    name = "sdpa"
    reads_masked = True

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> bool [rows, 1, 1, bucket]."""
        return (torch.arange(bucket, device=lengths.device) < lengths[:, None])[:, None, None]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> Tensor:
        """See Attention. Only the bucket is read."""
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
        self._attend = _build(head, dtype == torch.bfloat16)
        self._scale = head**-0.5
        self._scores = torch.empty(0)

    def reach(self, lengths: Tensor, bucket: int) -> Tensor:
        """-> int64 [rows]; the kernel reads no column beyond them."""
        return lengths.contiguous()

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> Tensor:
        """See Attention. Accumulates in float32."""
        n_rows, n_heads, capacity, _ = keys.shape
        scaled = (query.float() * self._scale).contiguous()
        output = torch.empty_like(scaled)
        if self._scores.numel() < n_rows * n_heads * capacity:
            self._scores = torch.empty(n_rows * n_heads * capacity)
        self._attend(
            scaled.data_ptr(),
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
    """The fastest variant that this machine can run."""
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        try:
            return Compiled(head, dtype)
        except NoCompiler as error:
            log.info("attention without a compiled kernel (%s): slower, same songs", error)
    return Sdpa()


class NoCompiler(RuntimeError):
    """The kernel cannot be built here."""


@functools.cache
def _build(head: int, bf16: bool) -> "ctypes._NamedFuncPointer":
    """Compile and load attention.c. Raises NoCompiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.name == "nt":
        raise NoCompiler("no C compiler")
    with tempfile.TemporaryDirectory(prefix="attention-") as folder:
        built, library = Path(folder, "attention.o"), Path(folder, "attention.so")
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]
        defines = [f"-DHEAD={head}", f"-DKV_BF16={int(bf16)}"]
        try:
            _run([compiler, *flags, *defines, "-c", str(_SOURCE), "-o", str(built)])
            # Without -fopenmp: the symbols are found in the OpenMP that torch has loaded. A second
            # one would bring threads of its own, which fight with torch's for the cores.
            _run([compiler, "-shared", str(built), "-lm", "-o", str(library)])
            function = ctypes.CDLL(str(library)).attend
        except (OSError, subprocess.SubprocessError) as error:
            raise NoCompiler(f"{compiler}: {error}") from None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer] * 4 + [size] * 3 + [pointer] * 2
    function.restype = None
    return function


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
