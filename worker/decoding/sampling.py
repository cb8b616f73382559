"""Choose tokens from logits, with random draws that depend on the song alone.

A draw is a function of (seed, frame, codebook): other songs, the slot, the batch size and restarts do
not change it. One uniform number per token is mapped by the inverse CDF over the top-k set.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine import Sampling

# Philox 4x64 gives four words per counter value (Salmon et al. 2011). numpy promises that its raw
# words never change, unlike its distributions.
_WORDS = 4


def draws(seed: int, start: int, n_frames: int, n_codebooks: int) -> NDArray[np.float32]:
    """Uniform draws of frames [start, start + n_frames): [n_frames, n_codebooks], in [0, 1)."""
    blocks = -(-n_codebooks // _WORDS)
    philox = np.random.Philox(key=seed, counter=start * blocks)
    words = philox.random_raw(n_frames * blocks * _WORDS).reshape(n_frames, blocks * _WORDS)
    # 24 bits fit a float32's mantissa exactly: rounding never gives 1.0.
    return (words[:, :n_codebooks] >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) as in MusicGen; all [..., vocabulary]."""
    return unconditional + (conditional - unconditional) * scale


def pick(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Choose tokens: float logits [..., vocabulary], uniform [...] -> int64 [...].

    Tokens tied with the k-th best are all kept, as in transformers. No host synchronisation.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    scaled = logits / sampling.temperature
    k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    best = scaled.topk(k, dim=-1).values
    weight = torch.where(scaled >= best[..., -1:], (scaled - best[..., :1]).exp(), 0.0)
    cumulative = weight.cumsum(-1)
    total = cumulative[..., -1:]
    # u * total can round up to total, which would choose a token of weight 0: stay below it.
    target = torch.minimum(uniform[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # The last is always over the target; without it, logits that are NaN give a token all the same.
    return (cumulative[..., :-1] <= target).sum(-1)
