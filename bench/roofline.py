"""This machine's measured limits (compute and memory bandwidth), to compare the engine with."""

from collections.abc import Callable

import torch

from bench.timing import seconds
from worker.decoding.linear import pack
from worker.models.heartmula_config import Flavour, MulaConfig
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


def read_shares(
    device: torch.device, n_bytes: float, act: Callable[[], object], repetitions: int
) -> tuple[list[float], list[float]]:
    """Of `act`, which reads so many bytes: percent of the bandwidth, and seconds, of each repetition."""
    shares, took = [], []
    # One after the other: neighbours on the machine use its memory, too.
    for _ in range(repetitions):
        bandwidth, act_s = read_bandwidth(device), seconds(act)
        shares.append(100 * n_bytes / act_s / bandwidth)
        took.append(act_s)
    return shares, took


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


def frame_bytes(config: MulaConfig, dtype: torch.dtype) -> int:
    """Bytes of weights that a HeartMuLa's step reads: the backbone once, the depth decoder seven times."""
    runs = config.audio_num_codebooks - 1
    weights = _llama(config.backbone) + _heads(config) + runs * _depth(config)
    return weights * dtype.itemsize


def frame_flops(config: MulaConfig, slots: int) -> float:
    """FLOPs of the linear layers in a HeartMuLa's step, both halves: the depth decoder has 8 positions."""
    each = _llama(config.backbone) + _heads(config) + config.audio_num_codebooks * _depth(config)
    return 2.0 * 2 * slots * each


def prefill_flops(config: MulaConfig, n_positions: int) -> float:
    """FLOPs of the linear layers for one song's prompt, both halves, and its first frame."""
    return 2.0 * 2 * (n_positions - 1) * _llama(config.backbone) + frame_flops(config, 1)


def _llama(sizes: Flavour) -> int:
    """The weights of its linear layers."""
    kept = sizes.width // sizes.heads * sizes.kv_heads
    return sizes.layers * sizes.width * (2 * sizes.width + 2 * kept + 3 * sizes.mlp)


def _depth(config: MulaConfig) -> int:
    """The weights of a run of the depth decoder, without its heads."""
    return _llama(config.decoder) + config.backbone.width * config.decoder.width


def _heads(config: MulaConfig) -> int:
    others = (config.audio_num_codebooks - 1) * config.decoder.width
    return config.audio_vocab_size * (config.backbone.width + others)
