"""A frame's eight tokens from the backbone's hidden state, one codebook after another.

Codebook 0 has a head on the backbone. The others come from a small Llama, the depth decoder, whose positions
are the frame's: 0 is the hidden state, 1 the embedding of codebook 0, 2 that of codebook 1, ... Its cache
starts empty with each frame. Positions 0 and 1 are fed together: seven runs for eight codebooks.

Every token is chosen as sampling.py does, from one draw, after guidance: in float32, whatever the weights
are. Both halves are then fed the same token.

The vocabulary has tokens beyond the codec's codes. One that does not end the song either (8192 of the real
model; in the first frame, which ends no song, every one) cannot be decoded: heartlib fails at its end, when
the codec looks the token up. Here the likeliest code takes its place before anything follows from it. Every
other token is chosen as if this rule were not there: a song that heartlib can decode has heartlib's tokens.
"""

from typing import Any

import torch
from torch import Tensor

from worker.decoding.sampling import guide, pick
from worker.engine import Sampling
from worker.heartmula.attention import Place
from worker.heartmula.backbone import Backbone
from worker.heartmula.cache import Cache
from worker.heartmula.layers import Llama, Placement
from worker.heartmula.weights import Weights
from worker.models.heartmula_config import MulaConfig


class Depth:
    """The heads and the depth decoder, for the frames of some slots at once."""

    def __init__(
        self, config: MulaConfig, n_codes: int, backbone: Backbone, weights: Weights, placement: Placement
    ):
        self._backbone, self._device = backbone, placement.device
        self._n_codes = n_codes if n_codes < config.audio_vocab_size else None  # None: all tokens are codes
        self.n_codebooks = config.audio_num_codebooks
        self.llama = Llama("decoder", config.decoder, self.n_codebooks, weights, placement)
        self._projection = placement.pack(weights["projection.weight"])
        self._heads = [placement.pack(weights["codebook0_head.weight"])]
        self._heads += [placement.pack(head.t()) for head in weights["audio_head"]]
        self._plans: dict[int, list[Any]] = {}

    def __call__(
        self, hidden: Tensor, uniform: Tensor, sampling: Sampling, first_end: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor]:
        """The next frame of each slot.

        hidden [n * halves, width] of the backbone, draws uniform [n, codebooks], first_end [n]: the first of
        the tokens that end a slot's song
        -> tokens [n, codebooks] (int64), and [n]: whether all logits were finite
        """
        halves, rows = cache.halves, len(hidden)
        plans = self._plans_for(rows)
        state, tokens, finite = hidden, [], []
        for k, head in enumerate(self._heads):
            logits = head(state).float()
            if halves == 2:
                logits = guide(logits[::2], logits[1::2], sampling.guidance_scale)
            tokens.append(self._decodable(pick(logits, uniform[:, k], sampling), logits, first_end))
            finite.append(logits.abs().amax(-1) < torch.inf)  # NaN is not; `isfinite` takes ten times as long
            if k + 1 == len(self._heads):
                break
            x = self._backbone.embed(k, tokens[k]).repeat_interleave(halves, 0)
            if k == 0:
                x = torch.stack((hidden, x), 1).flatten(0, 1)
            x = self.llama(self._projection(x), plans[k], cache.layers)
            state = self.llama.norm(x[1::2] if k == 0 else x)
        return torch.stack(tokens, 1), torch.stack(finite).all(0)

    def _decodable(self, token: Tensor, logits: Tensor, first_end: Tensor) -> Tensor:
        """The tokens [n], each a code or one that ends its song."""
        if self._n_codes is None:
            return token
        is_neither = (token >= self._n_codes) & (token < first_end)
        return torch.where(is_neither, logits[:, : self._n_codes].argmax(-1), token)

    def _plans_for(self, rows: int) -> list[Any]:
        """The places of the seven runs for so many rows. Made once."""
        if rows not in self._plans:
            positions = torch.arange(self.n_codebooks, device=self._device)
            runs = [positions[:2], *positions[2:, None]]
            self._plans[rows] = [
                self.llama.plan(Place(0, run.expand(rows, -1), k + 2)) for k, run in enumerate(runs)
            ]
        return self._plans[rows]
