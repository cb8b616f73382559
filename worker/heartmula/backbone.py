"""HeartMuLa's backbone: a Llama over a song's prompt and frames, one position after another.

A position's input is the sum of its embeddings: of a text token in the prompt, of eight audio tokens in a
frame. With guidance each slot has two rows: the conditional one, and one whose prompt is at every
position the embedding that stands for no text. Both are fed the same frames at the same positions.

Without guidance (a scale of 1 or less) there is the conditional row only, as in heartlib at 1; below 1
heartlib computes two rows and uses the first, which is the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.heartmula.attention import Place
from worker.heartmula.cache import Cache
from worker.heartmula.layers import Llama, Placement
from worker.heartmula.prompt import Prompt
from worker.heartmula.weights import Weights
from worker.models.heartmula_config import MulaConfig


class Backbone:
    """The backbone's forward pass: `fill` for many positions of one slot, `step` for one of some slots."""

    def __init__(self, config: MulaConfig, weights: Weights, placement: Placement):
        sizes = config.backbone
        self._placement = placement
        self.llama = Llama("backbone", sizes, sizes.positions, weights, placement)
        self._text = placement.put(weights["text_embeddings.weight"])
        self._no_text = placement.put(weights["unconditional_text_embedding.weight"])
        self._audio = placement.put(weights["audio_embeddings.weight"])
        self._reference = placement.put(weights["muq_linear.bias"])  # of reference audio that is all zeros
        books = torch.arange(config.audio_num_codebooks, device=placement.device)
        self._offsets = books * config.audio_vocab_size

    def embed(self, codebook: int, tokens: Tensor) -> Tensor:
        """One codebook's tokens [n] -> [n, width]."""
        return F.embedding(tokens + self._offsets[codebook], self._audio)

    def frame_inputs(self, tokens: Tensor) -> Tensor:
        """Frames [n, codebooks] -> [n, width]."""
        return F.embedding_bag(tokens + self._offsets, self._audio, mode="sum")

    def prompt_inputs(self, prompt: Prompt, start: int, end: int, halves: int) -> Tensor:
        """Positions [start, end) of a prompt -> [halves, end - start, width]."""
        ids = torch.tensor(prompt.ids[start:end], dtype=torch.int64, device=self._placement.device)
        text = F.embedding(ids, self._text)
        if start <= prompt.reference < end:
            text[prompt.reference - start] = self._reference
        return torch.stack((text, self._no_text.expand_as(text))[:halves])

    def fill(self, x: Tensor, start: int, slot: int, cache: Cache) -> None:
        """Compute keys and values of a slot's positions from `start` on; those before are in the cache.

        x [halves, n, width].
        """
        halves, n, width = x.shape
        position = torch.arange(start, start + n, device=x.device).expand(halves, n)
        plan = self.llama.plan(Place(cache.rows(slot).start, position, start + n))
        self.llama(x.reshape(halves * n, width), plan, cache.layers)

    def step(self, x: Tensor, position: Tensor, reach: int, cache: Cache) -> Tensor:
        """Feed one position of each of the first n slots.

        x [n * halves, width], position [n], below `reach` -> the hidden states, like x
        """
        plan = self.llama.plan(Place(0, position.repeat_interleave(cache.halves)[:, None], reach))
        return self.llama.norm(self.llama(x.clone(), plan, cache.layers))
