"""Decode once in this process; print seconds, and the GB allocated at the peak beside the audio.

python -m bench.codec_memory "at once"|chunked N_FRAMES
"""

import sys
import time

import numpy as np
import torch

from bench import allocations
from bench.models import build
from worker.musicgen import codec


def main() -> None:
    """See the module's docstring."""
    how, n_frames = sys.argv[1], int(sys.argv[2])
    encodec = build("small").model.audio_encoder
    tokens = np.random.default_rng(0).integers(0, 2048, (4, n_frames)).astype(np.int16)
    codec.decode(encodec, tokens[:, :150])  # warm
    started = time.perf_counter()
    with allocations.of(torch.device("cpu")) as taken:
        if how == "chunked":
            audio = codec.decode(encodec, tokens)
        else:
            with torch.inference_mode():
                codes = torch.from_numpy(tokens.astype(np.int64))[None, None]
                audio = encodec.decode(codes, [None]).audio_values.numpy()
    print(time.perf_counter() - started, (taken.peak - audio.nbytes) / 1e9)


if __name__ == "__main__":
    main()
