"""What transformers itself makes of a prompt: the truth that the engine is held against.

`generated` is its `generate`; `slow` is a loop over its forward pass without any cache, with the
delay pattern and audiocraft's windows written out by hand.
"""

from contextlib import contextmanager

import numpy as np
import torch

from worker.musicgen.pretrained import Pretrained


@contextmanager
def _tapped(model):
    """generate() always decodes to audio: take the tokens instead."""
    taken = []

    class Silence:
        audio_values = torch.zeros(1, 1, 1)

    def decode(codes, **_):
        taken.append(codes[0].clone())
        return Silence

    original, model.audio_encoder.decode = model.audio_encoder.decode, decode
    try:
        yield taken
    finally:
        model.audio_encoder.decode = original


def generated(loaded: Pretrained, prompts: list[str], n_frames: int, carried=None, **options) -> np.ndarray:
    """Greedy tokens with guidance of prompts padded to a batch: [batch, codebooks, n_frames].

    carried [batch, codebooks, n]: tokens to go on from.
    """
    model = loaded.model
    inputs = loaded.tokenizer(prompts, padding=True, return_tensors="pt")
    n_new, extra = n_frames, {}
    if carried is not None:
        n_new -= carried.shape[-1]
        extra["decoder_input_ids"] = carried.reshape(-1, carried.shape[-1]).clone()
    with _tapped(model) as taken, torch.inference_mode():
        model.generate(
            **inputs,
            **extra,
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=n_new + model.decoder.num_codebooks - 1,
            **options,
        )
    return taken[0].numpy()


def generated_long(loaded: Pretrained, prompt: str, n_frames: int, window: int, stride: int) -> np.ndarray:
    """audiocraft's `_generate_tokens` over transformers' generate: [codebooks, n_frames]."""
    made = generated(loaded, [prompt], min(n_frames, window))
    offset = 0
    while made.shape[-1] < n_frames:
        offset += stride
        carried = torch.from_numpy(made[..., offset:])
        more = generated(loaded, [prompt], min(n_frames - offset, window), carried)
        made = np.concatenate([made, more[..., carried.shape[-1] :]], axis=-1)
    return made[0]


def slow(
    loaded: Pretrained, prompt: str, n_frames: int, window: int, stride: int, scale: float = 3.0
) -> np.ndarray:
    """Greedy tokens by whole forward passes, one for each column: [codebooks, n_frames]."""
    model = loaded.model
    K, special = model.decoder.num_codebooks, model.config.decoder.vocab_size
    text = loaded.tokenizer([prompt], return_tensors="pt")
    made = np.zeros((K, 0), np.int64)
    offset = 0
    while made.shape[1] < n_frames:
        length = min(n_frames - offset, window)
        carried = made[:, offset:]
        table = torch.full((K, length + K), special)
        for k in range(K):
            table[k, 1 + k : 1 + k + length] = -1
            table[k, 1 + k : 1 + k + carried.shape[1]] = torch.from_numpy(carried[k])
        for column in range(carried.shape[1] + 1, length + K):
            logits = []
            for mask in (text.attention_mask, torch.zeros_like(text.attention_mask)):
                with torch.inference_mode():
                    states = model.text_encoder(**text).last_hidden_state * mask[..., None]
                    out = model(
                        attention_mask=mask,
                        encoder_outputs=(states,),
                        decoder_input_ids=table[:, :column],
                        use_cache=False,
                    )
                logits.append(out.logits[:, -1])
            best = (logits[1] + (logits[0] - logits[1]) * scale).argmax(-1)
            table[:, column] = torch.where(table[:, column] == -1, best, table[:, column])
        frames = np.stack([table[k, 1 + k : 1 + k + length].numpy() for k in range(K)])
        made = np.concatenate([made, frames[:, carried.shape[1] :]], axis=1)
        offset += stride
    return made
