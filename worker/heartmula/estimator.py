"""HeartCodec's estimator: which way, and how fast, flow matching moves each latent at a moment of time.

Two stacks of transformer blocks, the second twice as wide; it sees the input again beside the first one's
output. Every block is shifted, scaled and gated by the moment (adaptive norm of Peebles & Xie 2023, with one
network for all blocks as in PixArt-alpha). Attention is over the whole segment, not causal.

The moments are known from the start, so what the networks make of them is computed once, and their weights
(some 340 MB) are not kept.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.heartmula.codec_weights import CodecWeights
from worker.models.heartmula_config import CodecConfig

_EPS = 1e-6
_ROTARY_BASE = 10_000
_TIME_FEATURES, _TIME_SCALE, _TIME_PERIOD = 512, 1000, 10_000
_KERNEL = 3


class Estimator:
    """The network at the moments `times` [n], float32 between 0 and 1."""

    def __init__(self, weights: CodecWeights, config: CodecConfig, times: Tensor, device: torch.device):
        heads = config.num_attention_heads
        self._narrow = _Stack(weights, ("proj_in", ""), config.num_layers, heads, times, device)
        self._wide = _Stack(weights, ("connection_proj", "_2"), config.num_layers_2, heads, times, device)
        self._out = _Projection(weights.of("proj_out"), device)

    def __call__(self, x: Tensor, moment: int) -> Tensor:
        """[rows, n, in_channels] at times[moment] -> [rows, n, out_channels]."""
        narrow = self._narrow(x, moment)
        return self._out(self._wide(torch.cat([x, narrow], dim=-1), moment))


class _Stack:
    """A projection, blocks of one width, and a norm."""

    def __init__(
        self,
        weights: CodecWeights,
        names: tuple[str, str],
        n_blocks: int,
        heads: int,
        times: Tensor,
        device: torch.device,
    ):
        projection, suffix = names
        embedded, modulation = _of_times(weights.of(f"adaln_single{suffix}"), times)
        blocks = weights.of(f"transformer_blocks{suffix}")
        self._projection = _Projection(weights.of(projection), device)
        self._blocks = [_Block(blocks.of(str(n)), heads, modulation, device) for n in range(n_blocks)]
        self._norm = (weights(f"scale_shift_table{suffix}") + embedded[:, None]).to(device)
        self._head = embedded.shape[1] // heads

    def __call__(self, x: Tensor, moment: int) -> Tensor:
        x = self._projection(x)
        rotation = _rotation(x.shape[1], self._head, x.device)
        for block in self._blocks:
            x = block(x, moment, rotation)
        shift, scale = self._norm[moment]
        return F.layer_norm(x, shift.shape, 1 + scale, shift, _EPS)


class _Block:
    """Attention and a gated feed-forward network (SwiGLU), each modulated by the moment."""

    def __init__(self, weights: CodecWeights, heads: int, modulation: Tensor, device: torch.device):
        self._heads = heads
        self._modulation = (weights("scale_shift_table") + modulation).to(device)  # [times, 6, width]
        self._norm, self._mlp_norm = (weights(f"{n}_norm.weight").to(device) for n in ("attn", "mlp"))
        self._qkv = weights.stacked(*(f"attn.{n}_proj.weight" for n in "qkv")).to(device)
        self._out = weights("attn.o_proj.weight").to(device)
        self._gate_up = weights.stacked("mlp.gate.weight", "mlp.up.weight").to(device)
        self._down = weights("mlp.down.weight").to(device)

    def __call__(self, x: Tensor, moment: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self._modulation[moment]
        x = torch.addcmul(x, gate, self._attend(_modulated(x, self._norm, shift, scale), rotation))
        gated, up = F.linear(_modulated(x, self._mlp_norm, mlp_shift, mlp_scale), self._gate_up).chunk(2, -1)
        return torch.addcmul(x, mlp_gate, F.linear(F.silu(gated).mul_(up), self._down))

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        rows, n, _ = x.shape
        qkv = F.linear(x, self._qkv).view(rows, n, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, key = _rotated(qkv[:2], rotation)  # [rows, heads, n, head]
        attended = F.scaled_dot_product_attention(query, key, qkv[2])
        return F.linear(attended.transpose(1, 2).flatten(2), self._out)


class _Projection:
    """A convolution over neighbouring latents, then a linear layer."""

    def __init__(self, weights: CodecWeights, device: torch.device):
        weight, bias = weights.linear("ffn_1")
        scale = _KERNEL**-0.5
        self._weight, self._bias = (weight * scale).to(device), (bias * scale).to(device)
        linear, linear_bias = weights.linear("ffn_2")
        self._linear, self._linear_bias = linear.to(device), linear_bias.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        x = F.conv1d(x.transpose(1, 2), self._weight, self._bias, padding=_KERNEL // 2).transpose(1, 2)
        return F.linear(x, self._linear, self._linear_bias)


def _of_times(weights: CodecWeights, times: Tensor) -> tuple[Tensor, Tensor]:
    """Each time's embedding [times, width], and what modulates every block [times, 6, width]."""
    half = _TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(_TIME_PERIOD) * torch.arange(half) / half)
    angles = times[:, None] * frequencies * _TIME_SCALE
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    embedder = weights.of("emb.timestep_embedder")
    embedded = F.linear(
        F.silu(F.linear(features, *embedder.linear("linear_1"))), *embedder.linear("linear_2")
    )
    return embedded, F.linear(F.silu(embedded), *weights.linear("linear")).view(len(times), 6, -1)


def _modulated(x: Tensor, norm: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, norm.shape, norm * (1 + scale), _EPS).add_(shift)


def _rotation(n: int, head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to n - 1: [n, head / 2] each."""
    frequencies = 1 / _ROTARY_BASE ** (torch.arange(0, head, 2, device=device) / head)
    angles = torch.outer(torch.arange(n, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (Su et al. 2021) of neighbouring pairs: [..., n, head] -> the same."""
    cos, sin = rotation
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
