"""EnCodec: tokens to audio and audio to tokens, in chunks, with the same result as at once.

Every layer has one chunk of the song in memory at a time. The convolutions get more frames of context on
both sides than they reach; the LSTM takes its state over from the chunk before. Up- and downsampling need
some 35 MB per second of audio in a chunk.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EncodecModel

from worker.engine import Abandoned, Audio, Tokens

CHUNK_FRAMES = 100
# The convolutions between samples and LSTM reach less than 2 frames to each side, or 3 if they are causal.
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


@torch.inference_mode()
def encode(
    encodec: EncodecModel,
    audio: Iterable[Audio],
    chunk: int = CHUNK_FRAMES,
    go_on: Callable[[], bool] = lambda: True,
    channels: int = 1,
) -> Tokens:
    """float32 [n], or [n, 2] of two channels, in pieces of any length -> [n_codebooks, ceil(n / hop)].

    Each channel is encoded as mono; their codebooks alternate as `decode` expects them.
    Calls `go_on` before each chunk; raises Abandoned when it returns False.
    """
    chunk, hop = _chunk(encodec, chunk), encodec.config.hop_length
    downsampling, (recurrent, *last) = encodec.encoder.layers[:-3], encodec.encoder.layers[-3:]
    samples = (torch.from_numpy(piece.reshape(len(piece), channels).T.copy())[:, None] for piece in audio)

    def frames() -> Iterator[Tensor]:
        state = None
        for x, begin, end in _in_context(samples, hop, chunk, HALO_FRAMES):
            if not go_on():
                raise Abandoned
            x = x.to(encodec.device)
            for layer in downsampling:
                x = layer(x)
            y, state = _recurrent(recurrent, x[..., begin:end], state)
            yield y

    codes = []
    for x, begin, end in _in_context(frames(), 1, chunk, int(last[-1].kernel_size)):
        for layer in last:
            x = layer(x)
        found = encodec.quantizer.encode(x[..., begin:end], encodec.config.target_bandwidths[0])
        codes.append(found.flatten(0, 1).cpu().numpy().astype(np.int16))  # [codebook, channel, n]
    return np.concatenate(codes, axis=1)


def _decode_into(
    audio: Audio, encodec: EncodecModel, tokens: Tokens, chunk: int, go_on: Callable[[], bool]
) -> None:
    hop, done = encodec.config.hop_length, 0
    chunk = _chunk(encodec, chunk)
    for x, begin, end in _in_context(_frames(encodec, tokens, chunk), 1, chunk, HALO_FRAMES):
        if not go_on():
            raise Abandoned
        for layer in encodec.decoder.layers[2:]:
            x = layer(x)
        samples = x[0, 0, begin * hop : end * hop].float().cpu().numpy()
        audio[done : done + len(samples)] = samples
        done += len(samples)


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
        x = convolution(encodec.quantizer.decode(part))[..., start - context : end - context]
        y, state = _recurrent(recurrent, x, state)
        yield y


def _chunk(encodec: EncodecModel, chunk: int) -> int:
    """The whole song if the codec's norms are over it."""
    return chunk if encodec.config.norm_type == "weight_norm" else sys.maxsize


def _recurrent(layer: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The LSTM from a state on: [batch, channels, n] -> the same, and the state after it."""
    x = x.permute(2, 0, 1)
    y, state = layer.lstm(x, state)
    return (y + x).permute(1, 2, 0), state


def _in_context(
    pieces: Iterable[Tensor], per_frame: int, chunk: int, halo: int
) -> Iterator[tuple[Tensor, int, int]]:
    """A stream, cut anew into chunks of frames, each with `halo` frames more on both sides where there are.

    -> [..., n] with the numbers of the chunk's first frame in it and of the frame after its last.
    """
    kept, first, done = None, 0, 0  # what is kept begins with frame `first`; those before `done` are done
    for piece in pieces:
        kept = piece if kept is None else torch.cat([kept, piece], -1)
        while kept.shape[-1] >= (needed := done + chunk + halo - first) * per_frame:
            yield kept[..., : needed * per_frame], done - first, done - first + chunk
            done += chunk
            kept, first = kept[..., (max(0, done - halo) - first) * per_frame :], max(0, done - halo)
    if kept is not None and (n_left := -(-kept.shape[-1] // per_frame)) > done - first:
        yield kept, done - first, n_left
