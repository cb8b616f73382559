"""What this machine can do at best, measured: the ceiling that the engine's figures stand under."""

import torch

from bench.timing import seconds
from worker.musicgen.linear import pack
from worker.musicgen.model import Shape


def gemm_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Multiply-add rate of a square matrix product, in FLOP/s: the best of ten, torch's own or ours."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    ours = pack(b)
    took = [seconds(multiply) for _ in range(10) for multiply in (lambda: a @ b, lambda: ours(a))]
    return 2 * size**3 / min(took)


def read_bandwidth(device: torch.device, n_bytes: int = 1 << 29) -> float:
    """Bytes per second of reading memory once: the best of ten."""
    x = torch.ones(n_bytes // 4, device=device)
    return max(n_bytes / seconds(lambda: x.sum()) for _ in range(10))


def step_flops(shape: Shape, ffn: int, slots: int) -> float:
    """FLOPs of the linear layers in one step: cross-attention in the conditional half alone,
    layer 0's self-attention in one half alone."""
    square = shape.hidden**2
    conditional = shape.n_layers * (4 * square + 2 * square + 2 * shape.hidden * ffn)
    unconditional = shape.n_layers * (4 * square + 2 * shape.hidden * ffn) - 4 * square
    heads = 2 * shape.hidden * shape.n_codebooks * shape.vocabulary
    return 2.0 * slots * (conditional + unconditional + heads)
