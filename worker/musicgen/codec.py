"""Decode EnCodec tokens to audio in chunks, with the same result as decoding at once.

Every layer has one chunk of the song in memory at a time. The convolutions get more frames of context on
both sides than they reach; the LSTM takes its state over from the chunk before. The upsampling needs
some 35 MB per second of audio in a chunk.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import EncodecModel

from worker.engine import Abandoned, Audio, Tokens

CHUNK_FRAMES = 100
# The convolutions after the LSTM reach less than 2 frames to each side.
HALO_FRAMES = 4


@torch.inference_mode()
def decode(
    encodec: EncodecModel,
    tokens: Tokens,
    chunk: int = CHUNK_FRAMES,
    go_on: Callable[[], bool] = lambda: True,
    channels: int = 1,
) -> Audio:
    """[n_codebooks, n_frames] -> float32 [n_frames * hop], or [n_frames * hop, 2] of two channels.

    The codebooks of a stereo MusicGen alternate: left, right, left, ... Each channel is decoded as mono.
    Calls `go_on` before each chunk; raises Abandoned when it returns False.
    """
    audio = np.empty((tokens.shape[1] * encodec.config.hop_length, channels), np.float32)
    for channel in range(channels):
        _decode_into(audio[:, channel], encodec, tokens[channel::channels], chunk, go_on)
    return audio if channels > 1 else audio[:, 0]


def _decode_into(
    audio: Audio, encodec: EncodecModel, tokens: Tokens, chunk: int, go_on: Callable[[], bool]
) -> None:
    hop, n_frames = encodec.config.hop_length, tokens.shape[1]
    if encodec.config.norm_type != "weight_norm":
        chunk = n_frames  # its norms are over the whole song
    upsampling = encodec.decoder.layers[2:]
    frames, first = None, 0  # the frames from `first` on that are still needed
    done = n_known = 0
    for new in _frames(encodec, tokens, chunk):
        if not go_on():
            raise Abandoned
        frames = new if frames is None else torch.cat([frames, new], -1)
        n_known += new.shape[-1]
        end = n_known if n_known == n_frames else n_known - HALO_FRAMES
        if end <= done:
            continue
        x = frames
        for layer in upsampling:
            x = layer(x)
        samples = x[0, 0, (done - first) * hop : (end - first) * hop]
        audio[done * hop : end * hop] = samples.float().cpu().numpy()
        done = end
        needed = max(0, done - HALO_FRAMES)
        frames, first = frames[..., needed - first :], needed


def _frames(encodec: EncodecModel, tokens: Tokens, chunk: int) -> Iterator[Tensor]:
    """What the layers at 50 frames per second make of the song: [1, channels, n] of each chunk in turn."""
    convolution, recurrent = encodec.decoder.layers[:2]
    reach = int(convolution.kernel_size)
    codes = torch.from_numpy(tokens.astype(np.int64))[:, None]
    state = None
    for start in range(0, tokens.shape[1], chunk):
        end = min(start + chunk, tokens.shape[1])
        context = max(0, start - reach)
        part = codes[..., context : end + reach].to(encodec.device)
        x = convolution(encodec.quantizer.decode(part))[..., start - context : end - context].permute(2, 0, 1)
        y, state = recurrent.lstm(x, state)
        yield (y + x).permute(1, 2, 0)
