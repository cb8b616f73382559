"""Linear layers without bias, in the layout that the device multiplies fastest.

On a CPU oneDNN packs the weights once: two to four times as fast as `F.linear` for the few rows
of a decoding step. Elsewhere, or where this torch lacks the packed call, they are plain.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# The rows that oneDNN packs for. Any number works; it is fastest near this one.
_TYPICAL_ROWS = 32


class Linear(Protocol):
    """y = activation(x @ weight.T): [rows, n_in] -> [rows, n_out]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""


class PlainLinear:
    """torch's own."""

    def __init__(self, weight: Tensor, gelu: bool = False):
        self._weight, self._gelu = weight.contiguous(), gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        y = F.linear(x, self._weight)
        return F.gelu(y) if self._gelu else y


class PackedLinear:
    """oneDNN's, with weights reordered once and the activation fused."""

    def __init__(self, weight: Tensor, gelu: bool = False):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
        self._activation = "gelu" if gelu else "none"

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, self._activation, [], "none")
        return y


def pack(weight: Tensor, gelu: bool = False) -> Linear:
    """The fastest layer for a weight [n_out, n_in] on its device."""
    return (PackedLinear if _packs(weight) else PlainLinear)(weight, gelu)


def _packs(weight: Tensor) -> bool:
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or not mkldnn:
        return False
    # oneDNN refuses to pack bf16 for a CPU without AVX-512.
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
