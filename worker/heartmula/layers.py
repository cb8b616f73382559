"""A Llama's layers (Grattafiori et al. 2024), their weights fused, on a device in a precision.

The names of the weights are torchtune's, as heartlib stores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.decoding.linear import Linear, pack
from worker.heartmula import attention, gate
from worker.heartmula.attention import Place
from worker.heartmula.weights import Weights
from worker.models.heartmula_config import Flavour

_EPS = 1e-5


@dataclass(frozen=True)
class Placement:
    """Device and precision of the weights and the cache."""

    device: torch.device
    dtype: torch.dtype

    def put(self, weight: Tensor) -> Tensor:
        """The weight on the device."""
        return weight.to(self.device, self.dtype)

    def pack(self, *weights: Tensor) -> Linear:
        """Weights [n_out, n_in], one below the other, as one linear layer."""
        placed = [self.put(weight) for weight in weights]
        return pack(placed[0] if len(placed) == 1 else torch.cat(placed))


class Norm:
    """Root mean square normalisation (Zhang & Sennrich 2019) of the last dimension, computed in fp32."""

    def __init__(self, scale: Tensor):
        self._scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.rms_norm(x, self._scale.shape, self._scale, _EPS)


class Layer:
    """One layer's fused weights."""

    def __init__(self, name: str, weights: Weights, placement: Placement):
        def packed(*names: str) -> Linear:
            return placement.pack(*(weights[f"{name}.{each}.weight"] for each in names))

        self.norm = Norm(placement.put(weights[f"{name}.sa_norm.scale"]))
        self.qkv = packed("attn.q_proj", "attn.k_proj", "attn.v_proj")
        self.out = packed("attn.output_proj")
        self.mlp_norm = Norm(placement.put(weights[f"{name}.mlp_norm.scale"]))
        self.gate_up, self.down = packed("mlp.w1", "mlp.w3"), packed("mlp.w2")


class Llama:
    """A stack of layers and the final norm; embeddings and heads are its user's."""

    def __init__(self, name: str, sizes: Flavour, n_positions: int, weights: Weights, placement: Placement):
        self.sizes = sizes
        self.attention = attention.best(sizes, n_positions, placement.dtype, placement.device)
        self._gate = gate.best(placement.dtype, placement.device)
        self._layers = [Layer(f"{name}.layers.{i}", weights, placement) for i in range(sizes.layers)]
        self.norm = Norm(placement.put(weights[f"{name}.norm.scale"]))

    def plan(self, place: Place) -> Any:
        """What the layers share of a place; it may be used again for the same one."""
        return self.attention.plan(place)

    def __call__(self, x: Tensor, plan: Any, cached: Sequence[Tensor]) -> Tensor:
        """Feed x [rows * n, width], which is overwritten: -> the last layer's output, before the final norm.

        cached: each layer's keys and values, to which the new ones are added.
        """
        for layer, kv in zip(self._layers, cached, strict=True):
            layer.out.add(self.attention(layer.qkv(layer.norm(x)), kv, plan), to=x)
            layer.down.add(self._gate(layer.gate_up(layer.mlp_norm(x))), to=x)
        return x
