"""A residual vector quantiser's codes as the condition of flow matching (HeartCodec's `vq_embed`).

A frame's vector is the sum of its codes' vectors, projected out of the codebooks' small dimension; a further
linear layer makes the condition of it. A frame stands for two latents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.heartmula.codec_weights import CodecWeights
from worker.models.heartmula_config import CodecConfig

LATENTS_OF_FRAME = 2


class Quantizer:
    """The codebooks, on a device."""

    def __init__(self, weights: CodecWeights, config: CodecConfig, device: torch.device):
        embeds = (f"vq_embed.layers.{n}._codebook.embed" for n in range(config.num_quantizers))
        self._codebooks = weights.stacked(*embeds).flatten(0, 1).to(device)
        self._offsets = torch.arange(config.num_quantizers, device=device) * config.codebook_size
        names = ["vq_embed.project_out"] if config.codebook_dim != config.dim else []
        layers = [weights.linear(name) for name in [*names, "cond_feature_emb"]]
        self._layers = [(weight.to(device), bias.to(device)) for weight, bias in layers]

    def __call__(self, codes: Tensor) -> Tensor:
        """int64 [songs, codebooks, n] -> [songs, n * 2, width]."""
        x = F.embedding(codes + self._offsets[:, None], self._codebooks).sum(dim=1)
        for weight, bias in self._layers:
            x = F.linear(x, weight, bias)
        return x.repeat_interleave(LATENTS_OF_FRAME, dim=1)
