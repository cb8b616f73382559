"""Decode once in this process and print seconds and the extra memory at the peak, in GB.

python -m bench.codec_memory "at once"|chunked N_FRAMES
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from bench.models import build
from worker.musicgen import codec


def resident() -> float:
    """GB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096 / 1e9


def main() -> None:
    """See the module's docstring."""
    how, n_frames = sys.argv[1], int(sys.argv[2])
    encodec = build("small").model.audio_encoder
    tokens = np.random.default_rng(0).integers(0, 2048, (4, n_frames)).astype(np.int16)
    codec.decode(encodec, tokens[:, :50])  # warm
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    if how == "chunked":
        codec.decode(encodec, tokens)
    else:
        with torch.inference_mode():
            encodec.decode(torch.from_numpy(tokens.astype(np.int64))[None, None], [None])
    took = time.perf_counter() - started
    done.set()
    watcher.join()
    print(took, max(peak, resident()) - before)


if __name__ == "__main__":
    main()
