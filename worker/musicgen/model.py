"""MusicGen's decoder as a few large matrix products, over a preallocated cache of keys and values.

Uses the weights of transformers' decoder and computes the same function (Copet et al. 2023), with QKV
in one matrix, the codebooks' embeddings in one gather, their heads in one matrix, and the text's keys
and values computed once per song. Two savings are exact:

* The unconditional half has text states of zero and projections without bias, so its
  cross-attention adds exactly zero: it is skipped.
* Both halves get the same tokens, so they are equal up to the first cross-attention: layer 0's
  self-attention is computed once, and x has one row per slot up to there, two after it.

Of a slot's two rows the first is the conditional one. A step computes the first n slots only.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MusicgenForCausalLM

from worker.decoding.kernels import NoCompiler
from worker.errors import BadInput
from worker.musicgen.attention import Attention, Compiled, New, Sdpa
from worker.musicgen.cache import Cache, rows_of
from worker.musicgen.cpu_step import CpuStep
from worker.musicgen.layers import Layer, Norm, Placement, Shape

log = logging.getLogger(__name__)


class Model:
    """The decoder's forward pass: `step` for one column of some slots, `fill` for many columns of one."""

    def __init__(
        self, decoder: MusicgenForCausalLM, placement: Placement, attention: Attention, n_columns: int
    ):
        inner = decoder.model.decoder
        self.shape, self.placement, self.attention = Shape.of(decoder), placement, attention
        self._layers = [Layer(layer, placement) for layer in inner.layers]
        self._norm = Norm(inner.layer_norm, placement)
        self._heads = placement.pack(*(head.weight for head in decoder.lm_heads))
        self._embedding = placement.put(*(embedding.weight for embedding in inner.embed_tokens))
        n_tokens = self.shape.vocabulary + 1  # and the special one
        self._offsets = torch.arange(self.shape.n_codebooks, device=placement.device) * n_tokens
        self._positions = placement.put(inner.embed_positions.get_embedding(n_columns, self.shape.hidden))
        self._mask_attention = Sdpa(placement.dtype)
        self._cpu_step = self._compiled_step()
        if placement.half_cache and not self._cpu_step:
            raise BadInput("a cache in half precision needs a C compiler and a CPU with AVX2; use fp32")

    @property
    def is_row_exact(self) -> bool:
        """True if a slot's logits do not depend on the number of slots or threads."""
        return self._cpu_step is not None

    def step(self, tokens: Tensor, position: Tensor, bucket: int, cache: Cache) -> tuple[Tensor, Tensor]:
        """Feed one column of each of the first n slots.

        tokens [n, codebooks], position [n]: its column, below `bucket`
        -> conditional and unconditional logits, float32 [n, codebooks, vocabulary]
        """
        shape, slots = self.shape, len(tokens)
        x, column = self._embed(tokens) + self._positions[position], position
        if self._cpu_step:
            both = self._cpu_step(x, position, cache)
            halves = both.view(2, slots, shape.n_codebooks, shape.vocabulary)
            return halves[0], halves[1]
        reach = self.attention.reach(column + 1, bucket)
        text_reach = self.attention.reach(cache.text_lengths[:slots], cache.n_text)
        for i, layer in enumerate(self._layers):
            n = x.shape[0]  # slots in layer 0, then twice that
            qkv = layer.qkv(layer.norm(x)).view(n, 3, shape.n_heads, shape.head)
            new = New(qkv[:, 1:], cache.row[:n], column)
            attended = self.attention(qkv[:, 0], cache.own[i][:, :n], reach, new)
            layer.out.add(attended.reshape(n, shape.hidden), to=x)
            if i == 0:
                x, column, reach = _twice(x), _twice(column), _twice(reach)
            # Norm before the choice of rows: a norm of every other row would copy them first.
            query = layer.text_query(layer.text_norm(x)[::2]).view(slots, shape.n_heads, shape.head)
            attended = self.attention(query, cache.text[:, i, :slots], text_reach)
            layer.text_out.add(attended.reshape(slots, shape.hidden), to=x[::2])
            layer.mlp(x)
        logits = self._heads(self._norm(x)).float().view(slots, 2, shape.n_codebooks, shape.vocabulary)
        return logits[:, 0], logits[:, 1]

    def _compiled_step(self) -> CpuStep | None:
        if not isinstance(self.attention, Compiled) or self.placement.dtype != torch.float32:
            return None
        try:
            return CpuStep(self.shape, self._layers, self._norm, self._heads, self.placement.cache_dtype)
        except NoCompiler:
            return None

    def fill(self, tokens: Tensor, start: int, slot: int, cache: Cache) -> None:
        """Feed columns [start, start + n) of one slot; the columns before them are in the cache already.

        tokens [n, codebooks]. Computes no logits: `step` feeds the column after them.
        """
        shape, n = self.shape, len(tokens)
        end = start + n
        x = (self._embed(tokens) + self._positions[start:end])[None]  # [1, then 2, n, hidden]
        columns = torch.arange(end, device=self.placement.device)
        causal = columns <= columns[start:, None]
        text_reach = self._mask_attention.reach(cache.text_lengths[slot : slot + 1], cache.n_text)
        for i, layer in enumerate(self._layers):
            halves = x.shape[0]
            rows = rows_of(slot, i)
            qkv = layer.qkv(layer.norm(x).view(halves * n, shape.hidden))
            qkv = qkv.view(halves, n, 3, shape.n_heads, shape.head).permute(2, 0, 3, 1, 4)
            kv = cache.own[i][:, rows, :, :end]
            kv[..., start:, :] = qkv[1:]
            if i == shape.n_layers - 1:
                return  # without logits, the rest of the last layer is not needed
            keys, values = kv.to(x.dtype)
            attended = F.scaled_dot_product_attention(qkv[0], keys, values, attn_mask=causal)
            x = x + layer.out(attended.transpose(1, 2).reshape(halves * n, shape.hidden)).view_as(x)
            if i == 0:
                x = x.repeat(2, 1, 1)
            query = layer.text_query(layer.text_norm(x[0])).view(n, shape.n_heads, shape.head)
            keys, values = cache.text[:, i, slot : slot + 1].to(x.dtype)
            attended = F.scaled_dot_product_attention(
                query.transpose(0, 1)[None], keys, values, attn_mask=text_reach
            )
            x[0] += layer.text_out(attended[0].transpose(0, 1).reshape(n, shape.hidden))
            layer.mlp(x.view(2 * n, shape.hidden))

    def set_text(self, states: Tensor, slot: int, cache: Cache) -> None:
        """Set a slot's text: states [n_text, hidden], without padding."""
        n_text = len(states)
        if n_text > cache.n_text:
            cache.resize_text(2 * n_text)
        states = states.to(self.placement.device, self.placement.dtype)
        for i, layer in enumerate(self._layers):
            kv = layer.text_kv(states).view(n_text, 2, self.shape.n_heads, self.shape.head)
            cache.text[:, i, slot, :, :n_text] = kv.permute(1, 2, 0, 3)
        cache.text_lengths[slot] = n_text

    def _embed(self, tokens: Tensor) -> Tensor:
        """[rows, codebooks] -> [rows, hidden]: the codebooks' embeddings, added in their order."""
        return F.embedding_bag(tokens + self._offsets, self._embedding, mode="sum")


def _twice(rows: Tensor) -> Tensor:
    """[n, ...] -> [2 n, ...], each row twice, one after the other."""
    return torch.stack((rows, rows), 1).flatten(0, 1)
