"""What transformers itself generates for a prompt: the reference for the engine.

`generated` is its `generate`; `slow` is a loop over its forward pass without any cache, with the
delay pattern and audiocraft's windows written out by hand.
"""

import numpy as np
import torch

from bench import theirs
from worker.musicgen.pretrained import Pretrained


def generated(loaded: Pretrained, prompts: list[str], n_frames: int, carried=None) -> np.ndarray:
    """Greedy tokens with guidance of prompts padded to a batch: [batch, codebooks, n_frames].

    carried [batch, codebooks, n]: tokens to continue.
    """
    if carried is None:
        return theirs.generate(loaded, prompts, n_frames)
    begun = carried.reshape(-1, carried.shape[-1]).clone()
    return theirs.generate(loaded, prompts, n_frames - carried.shape[-1], decoder_input_ids=begun)


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
    channels = model.config.decoder.audio_channels
    delays, last = [k // channels for k in range(K)], K // channels
    text = loaded.tokenizer([prompt], return_tensors="pt")
    made = np.zeros((K, 0), np.int64)
    offset = 0
    while made.shape[1] < n_frames:
        length = min(n_frames - offset, window)
        carried = made[:, offset:]
        table = torch.full((K, length + last), special)
        for k, delay in enumerate(delays):
            table[k, 1 + delay : 1 + delay + length] = -1
            table[k, 1 + delay : 1 + delay + carried.shape[1]] = torch.from_numpy(carried[k])
        for column in range(carried.shape[1] + 1, length + last):
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
        frames = np.stack([table[k, 1 + d : 1 + d + length].numpy() for k, d in enumerate(delays)])
        made = np.concatenate([made, frames[:, carried.shape[1] :]], axis=1)
        offset += stride
    return made
