"""Decode EnCodec tokens to audio in chunks, with the same result as decoding at once.

The layers at 50 frames per second (codebooks, first convolution, LSTM) process the whole song and
need little memory. The upsampling convolutions need some 35 MB per second of audio, so they process
one chunk at a time, with more frames of context on both sides than they can reach.
"""

from collections.abc import Callable

import numpy as np
import torch
from transformers import EncodecModel

from worker.engine import Abandoned, Audio, Tokens

CHUNK_FRAMES = 250
# The convolutions after the LSTM reach less than 2 frames to each side.
HALO_FRAMES = 4


@torch.inference_mode()
def decode(
    encodec: EncodecModel,
    tokens: Tokens,
    chunk: int = CHUNK_FRAMES,
    go_on: Callable[[], bool] = lambda: True,
) -> Audio:
    """[n_codebooks, n_frames] -> float32 mono [n_frames * hop].

    Calls `go_on` before each chunk; raises Abandoned when it returns False.
    """
    hop = encodec.config.hop_length
    first_convolution, lstm, *upsampling = encodec.decoder.layers
    codes = torch.from_numpy(tokens.astype(np.int64)).to(encodec.device)[:, None]
    frames = lstm(first_convolution(encodec.quantizer.decode(codes)))  # [1, channels, n_frames]
    n_frames = frames.shape[-1]
    audio = np.empty(n_frames * hop, np.float32)
    for start in range(0, n_frames, chunk):
        if not go_on():
            raise Abandoned
        end = min(start + chunk, n_frames)
        context = max(0, start - HALO_FRAMES)
        x = frames[..., context : end + HALO_FRAMES]
        for layer in upsampling:
            x = layer(x)
        samples = x[0, 0, (start - context) * hop : (end - context) * hop]
        audio[start * hop : end * hop] = samples.float().cpu().numpy()
    return audio
