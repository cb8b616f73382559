"""The gate of SwiGLU (Shazeer 2020): silu(gate) * up, of products that lie side by side."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.decoding.kernels import POINTER, SIZE, NoCompiler, build

Gate = Callable[[Tensor], Tensor]  # [rows, 2 n] -> [rows, n]


def plain(x: Tensor) -> Tensor:
    """torch's, which on a CPU may round a row differently beside other rows."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def compiled() -> Gate:
    """The C kernel of gate.c, float32: a row does not depend on the others. Raises NoCompiler."""
    kernel = build(
        Path(__file__).with_name("gate.c"), "gate", (*[POINTER] * 2, *[SIZE] * 3), ("-ffast-math",)
    )

    def gate(x: Tensor) -> Tensor:
        x = x.contiguous()
        n_rows, n = len(x), x.shape[1] // 2
        y = torch.empty(n_rows, n)
        kernel(x.data_ptr(), y.data_ptr(), n_rows, n, torch.get_num_threads())
        return y

    return gate


def best(dtype: torch.dtype, device: torch.device) -> Gate:
    """The fastest variant that runs on this machine."""
    if device.type == "cpu" and dtype == torch.float32:
        try:
            return compiled()
        except NoCompiler:
            pass
    return plain
