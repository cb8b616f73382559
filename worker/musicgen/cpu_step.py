"""A decoding step on a CPU as one C function, step.c: float32 weights, a cache in float32 or bfloat16.

The model made of single operations enters some 400 parallel regions a step, with Python between them.
One region with 8 barriers a layer is faster, and much faster where other processes want the cores.
A slot's logits do not depend on the other slots, their number or the threads.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worker.decoding.kernels import NUMBER, POINTER, SIZE, NoCompiler, build
from worker.decoding.linear import CompiledLinear, Linear, layout_flags
from worker.musicgen.cache import Cache
from worker.musicgen.layers import Layer, Norm, Shape

_NORMS = ("norm", "text_norm", "mlp_norm")
_LINEAR = ("qkv", "out", "text_query", "text_out", "up", "down")
_CACHED = ("keys", "values", "text_keys", "text_values")


class _Norm(ctypes.Structure):
    _fields_ = [("weight", POINTER), ("bias", POINTER)]


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Norm) for name in _NORMS] + [(name, POINTER) for name in (*_LINEAR, *_CACHED)]


class _Model(ctypes.Structure):
    _sizes = ("n_layers", "n_heads", "ffn", "n_logits", "capacity", "n_text")
    _fields_ = [*((name, SIZE) for name in _sizes), ("norm", _Norm), ("heads", POINTER)]


class _Scratch(ctypes.Structure):
    _fields_ = [(name, POINTER) for name in ("normed", "attended", "up", "products", "scores")]


class CpuStep:
    """All layers, for one column of some slots. Raises NoCompiler where it cannot be built."""

    def __init__(
        self, shape: Shape, layers: Sequence[Layer], norm: Norm, heads: Linear, cache_dtype: torch.dtype
    ):
        self._eps = norm.eps
        self._kept = (layers, norm, heads)  # their memory is read by address
        self._layers = (_Layer * len(layers))()
        for into, layer in zip(self._layers, layers, strict=True):
            for name in _NORMS:
                setattr(into, name, _norm(getattr(layer, name)))
            for name in _LINEAR:
                setattr(into, name, _compiled(getattr(layer, name)).panels.data_ptr())
        last = _compiled(heads)
        self._model = _Model(
            n_layers=len(layers),
            n_heads=shape.n_heads,
            ffn=_compiled(layers[0].up).n_out,
            n_logits=last.n_out,
            norm=_norm(norm),
            heads=last.panels.data_ptr(),
        )
        flags = (f"-DHEAD={shape.head}", f"-DKV_BF16={int(cache_dtype == torch.bfloat16)}", *layout_flags())
        self._step = build(
            Path(__file__).with_name("step.c"),
            "step",
            (*[POINTER] * 7, SIZE, NUMBER),
            ("-ffast-math", *flags),
        )

    def __call__(self, x: Tensor, columns: Tensor, cache: Cache) -> Tensor:
        """Embeddings [slots, hidden], columns [slots] -> logits [2, slots, n_logits], conditional ones first.

        Writes each slot's keys and values of its column into the cache.
        """
        slots, hidden = x.shape
        model, threads = self._model, torch.get_num_threads()
        model.capacity, model.n_text = cache.own[0].shape[3], cache.n_text
        for i, into in enumerate(self._layers):
            into.keys, into.values = (kept.data_ptr() for kept in cache.own[i])
            into.text_keys, into.text_values = (kept.data_ptr() for kept in cache.text[:, i])
        rows = x.new_empty(2 * slots, hidden)
        rows[:slots] = x
        logits = torch.empty(2, slots, model.n_logits)
        buffers = {
            "normed": torch.empty(threads, 2 * slots, hidden),
            "attended": torch.empty(2 * slots, hidden),
            "up": torch.empty(2 * slots, model.ffn),
            "products": torch.empty(2 * slots, 3 * hidden),
            "scores": torch.empty(threads, max(model.capacity, model.n_text)),
        }
        scratch = _Scratch(**{name: buffer.data_ptr() for name, buffer in buffers.items()})
        columns, lengths = columns.contiguous(), cache.text_lengths.contiguous()
        self._step(
            ctypes.addressof(model),
            ctypes.addressof(self._layers),
            ctypes.addressof(scratch),
            rows.data_ptr(),
            logits.data_ptr(),
            columns.data_ptr(),
            lengths.data_ptr(),
            slots,
            self._eps,
        )
        return logits


def _norm(norm: Norm) -> _Norm:
    return _Norm(norm.weight.data_ptr(), norm.bias.data_ptr())


def _compiled(linear: Linear) -> CompiledLinear:
    if not isinstance(linear, CompiledLinear):
        raise NoCompiler("its linear layers are not compiled")
    return linear
