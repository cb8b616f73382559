"""Linear layers without bias, in the layout that the device multiplies fastest.

On a CPU the weights are packed once. oneDNN is then two to four times as fast as `F.linear` for the
few rows of a decoding step. With AVX2 or AVX-512, this project's float32 kernel is faster than oneDNN
(docs/engine.md), and a row's result does not depend on the other rows. On GPUs, and where torch cannot
pack a weight, the layers are plain.
"""

import contextlib
import mmap
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.decoding.kernels import HERE, POINTER, SIZE, NoCompiler, build

# The number of rows that oneDNN packs for. Any number of rows works; it is fastest near this one.
_TYPICAL_ROWS = 32
# Floats of a vector register, and registers side by side, for linear.h.
_VECTORS = {"AVX2": (8, 3), "AVX512": (16, 4)}


class Linear(Protocol):
    """y = activation(x @ weight.T): [rows, n_in] -> [rows, n_out]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""

    def add(self, x: Tensor, to: Tensor) -> None:
        """Add y to `to` [rows, n_out], in place. Not for a layer with an activation."""
        to.add_(self(x))


class PlainLinear(Linear):
    """torch's `F.linear`."""

    def __init__(self, weight: Tensor, gelu: bool = False):
        self._weight, self._gelu = weight.contiguous(), gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        y = F.linear(x, self._weight)
        return F.gelu(y) if self._gelu else y

    def add(self, x: Tensor, to: Tensor) -> None:
        """See Linear. One kernel, which adds before it rounds."""
        to.addmm_(x, self._weight.t())


class PackedLinear(Linear):
    """oneDNN's linear layer, with weights packed once and the activation fused."""

    def __init__(self, weight: Tensor, gelu: bool = False):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
        self._activation = "gelu" if gelu else "none"

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, self._activation, [], "none")
        return y


class CompiledLinear(Linear):
    """The C kernel of linear.c, float32. Raises NoCompiler.

    threads: by default as many as torch has in the calling thread.
    """

    def __init__(self, weight: Tensor, gelu: bool = False, threads: int | None = None):
        self._multiply = _kernel()
        self.n_out, self._n_in = weight.shape
        lanes, vectors = _layout()
        panel = lanes * vectors  # outputs that are stored side by side
        n_panels = -(-self.n_out // panel)
        padded = F.pad(weight, (0, 0, 0, n_panels * panel - self.n_out))
        self.panels = _in_huge_pages(padded.view(n_panels, panel, self._n_in).transpose(1, 2))
        self._gelu, self._threads = gelu, threads

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear. A row's result does not depend on the other rows or their number."""
        if x.dtype != torch.float32 or x.ndim != 2 or x.shape[1] != self._n_in:
            raise ValueError(f"{x.dtype} {list(x.shape)} is not float32 [rows, {self._n_in}]")
        x = x.contiguous()
        y = torch.empty(len(x), self.n_out)
        addresses = x.data_ptr(), self.panels.data_ptr(), y.data_ptr()
        threads = self._threads or torch.get_num_threads()
        self._multiply(*addresses, len(x), self._n_in, self.n_out, self._gelu, threads)
        return y


def _in_huge_pages(x: Tensor) -> Tensor:
    """A contiguous copy of float32 in pages of 2 MB, where the system has them: each step reads all of it."""
    try:
        memory = mmap.mmap(-1, x.numel() * x.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # out of memory: torch says so in its own way
        return x.contiguous()
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=x.dtype).view(x.shape).copy_(x)


def pack(weight: Tensor, gelu: bool = False) -> Linear:
    """The fastest layer for a weight [n_out, n_in] on its device."""
    if weight.device.type != "cpu":
        return PlainLinear(weight, gelu)
    if weight.dtype == torch.float32 and has_kernel():
        return CompiledLinear(weight, gelu)
    return (PackedLinear if _packs(weight.dtype) else PlainLinear)(weight, gelu)


def has_kernel() -> bool:
    """True if this machine can build the C kernel."""
    try:
        _kernel()
    except NoCompiler:
        return False
    return True


def _layout() -> tuple[int, int]:
    """Raises NoCompiler where the kernel has none."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in _VECTORS:
        raise NoCompiler(f"no AVX2, but {capability}")
    return _VECTORS[capability]


def layout_flags() -> tuple[str, ...]:
    """The compiler's flags that say to linear.h how weights are packed here. Raises NoCompiler."""
    lanes, vectors = _layout()
    return f"-DLANES={lanes}", f"-DVECTORS={vectors}"


def _kernel() -> Callable[..., None]:
    return build(
        HERE / "linear.c", "multiply", (*[POINTER] * 3, *[SIZE] * 5), ("-ffast-math", *layout_flags())
    )


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # oneDNN does not pack bf16 for a CPU without AVX-512.
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
