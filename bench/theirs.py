"""The same songs by transformers, greedy and with guidance, as its users run it."""

from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache

from worker.musicgen.pretrained import Pretrained


@contextmanager
def _tokens_only(model: Any) -> Any:
    """generate() always decodes to audio, which is not what is compared: take the tokens."""
    taken: list[torch.Tensor] = []

    class Silence:
        audio_values = torch.zeros(1, 1, 1)

    def decode(codes: torch.Tensor, **_: object) -> type[Silence]:
        taken.append(codes[0].clone())
        return Silence

    original, model.audio_encoder.decode = model.audio_encoder.decode, decode
    try:
        yield taken
    finally:
        model.audio_encoder.decode = original


def generate(loaded: Pretrained, prompts: list[str], n_frames: int, **options: object) -> np.ndarray:
    """[batch, codebooks, n_frames] by `generate`; `options` go to it.

    With `decoder_input_ids` to go on from, these come before the n_frames that are made.
    """
    inputs = loaded.tokenizer(prompts, padding=True, return_tensors="pt").to(loaded.model.device)
    with _tokens_only(loaded.model) as taken, torch.inference_mode():
        loaded.model.generate(
            **inputs,
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=n_frames + loaded.model.decoder.num_codebooks - 1,
            **options,
        )
    tokens: np.ndarray = taken[0].cpu().numpy()
    return tokens


class LateStep:
    """The decoder's forward pass for one song at a late column, its history random."""

    def __init__(self, loaded: Pretrained, column: int, prompt_tokens: int):
        self._decoder = loaded.model.decoder
        c = self._decoder.config
        there = {"device": loaded.model.device, "dtype": loaded.model.dtype}
        self._text = torch.randn(2, prompt_tokens, c.hidden_size, **there)
        self._token = torch.zeros(2 * c.num_codebooks, 1, dtype=torch.int64, device=loaded.model.device)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        size = (2, c.num_attention_heads, column, c.hidden_size // c.num_attention_heads)
        for layer in range(c.num_hidden_layers):
            self._cache.self_attention_cache.update(
                torch.randn(size, **there), torch.randn(size, **there), layer
            )

    @torch.inference_mode()
    def __call__(self) -> None:
        self._decoder(
            self._token, encoder_hidden_states=self._text, past_key_values=self._cache, use_cache=True
        )
