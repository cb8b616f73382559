"""This machine's measured limits (compute and memory bandwidth), to compare the engine with."""

import torch

from bench.timing import seconds
from worker.decoding.linear import pack
from worker.musicgen.layers import Shape


def gemm_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a square matrix product: the best of ten, by torch or by this project's kernel."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    packed = pack(b)
    took = [seconds(multiply) for _ in range(10) for multiply in (lambda: a @ b, lambda: packed(a))]
    return 2 * size**3 / min(took)


def read_bandwidth(device: torch.device, n_bytes: int = 1 << 29) -> float:
    """Bytes per second of reading memory once: the best of ten."""
    x = torch.ones(n_bytes // 4, device=device)
    return max(n_bytes / seconds(lambda: x.sum()) for _ in range(10))


def step_bytes(shape: Shape, ffn: int, dtype: torch.dtype) -> int:
    """Bytes of the weights that a step reads once, however many slots it computes."""
    layer = 6 * shape.hidden**2 + 2 * shape.hidden * ffn
    heads = shape.hidden * shape.n_codebooks * shape.vocabulary
    return int((shape.n_layers * layer + heads) * dtype.itemsize)


def step_flops(shape: Shape, ffn: int, slots: int) -> float:
    """FLOPs of the linear layers in one step: cross-attention in the conditional half only, layer 0's
    self-attention in one half only."""
    square = shape.hidden**2
    conditional = shape.n_layers * (4 * square + 2 * square + 2 * shape.hidden * ffn)
    unconditional = shape.n_layers * (4 * square + 2 * shape.hidden * ffn) - 4 * square
    heads = 2 * shape.hidden * shape.n_codebooks * shape.vocabulary
    return 2.0 * slots * (conditional + unconditional + heads)
