"""A decoder's shape, and its layers' weights, fused, on a device in a precision."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MusicgenForCausalLM
from transformers.models.musicgen.modeling_musicgen import MusicgenDecoderLayer

from worker.decoding.linear import Linear, pack


@dataclass(frozen=True)
class Shape:
    """The decoder's dimensions."""

    n_layers: int
    n_heads: int
    head: int
    n_codebooks: int
    vocabulary: int
    channels: int = 1  # their codebooks alternate

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.n_heads * self.head

    @classmethod
    def of(cls, decoder: MusicgenForCausalLM) -> "Shape":
        """The shape of transformers' MusicgenForCausalLM."""
        c = decoder.config
        head = c.hidden_size // c.num_attention_heads
        return cls(
            c.num_hidden_layers, c.num_attention_heads, head, c.num_codebooks, c.vocab_size, c.audio_channels
        )


class Norm:
    """Layer normalisation over the last dimension."""

    def __init__(self, module: torch.nn.LayerNorm, placement: "Placement"):
        self.weight, self.bias = placement.put(module.weight), placement.put(module.bias)
        self.eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Layer:
    """One decoder layer's fused weights."""

    def __init__(self, layer: MusicgenDecoderLayer, placement: "Placement"):
        own, text = layer.self_attn, layer.encoder_attn
        self.norm = Norm(layer.self_attn_layer_norm, placement)
        self.qkv = placement.pack(own.q_proj.weight, own.k_proj.weight, own.v_proj.weight)
        self.out = placement.pack(own.out_proj.weight)
        self.text_norm = Norm(layer.encoder_attn_layer_norm, placement)
        self.text_query, self.text_out = (
            placement.pack(text.q_proj.weight),
            placement.pack(text.out_proj.weight),
        )
        self.text_kv = placement.pack(text.k_proj.weight, text.v_proj.weight)
        self.mlp_norm = Norm(layer.final_layer_norm, placement)
        self.up, self.down = placement.pack(layer.fc1.weight, gelu=True), placement.pack(layer.fc2.weight)

    def mlp(self, x: Tensor) -> None:
        """Add the feed-forward network's output to x [rows, hidden], in place."""
        self.down.add(self.up(self.mlp_norm(x)), to=x)


@dataclass(frozen=True)
class Placement:
    """Device and precision of the weights and the cache."""

    device: torch.device
    dtype: torch.dtype
    half_cache: bool = False  # keys and values in bf16, whatever the weights are

    @property
    def cache_dtype(self) -> torch.dtype:
        """Precision of keys and values."""
        return torch.bfloat16 if self.half_cache else self.dtype

    def put(self, *weights: Tensor) -> Tensor:
        """The weights stacked along their first dimension, on the device."""
        return torch.cat([weight.detach() for weight in weights]).to(self.device, self.dtype)

    def pack(self, *weights: Tensor, gelu: bool = False) -> Linear:
        """The stacked weights as one linear layer."""
        return pack(self.put(*weights), gelu)
