"""Decode once in this process; print seconds, and the GB at the peak beside the audio.

    python -m bench.codec_memory "at once"|chunked N_FRAMES

Counts what is allocated, in torch, oneDNN and numpy alike, as glibc reports it: resident memory would
depend on what the system pages out meanwhile. Needs glibc 2.33 or newer.
"""

import ctypes
import sys
import threading
import time
from types import TracebackType
from typing import Self

import numpy as np
import torch

from bench.models import build
from worker.musicgen import codec

# The large tensors live for some 10 ms.
_LOOK_S = 0.002


class _Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "mapped"),
            *("usmblks", "fsmblks", "in_use", "fordblks", "keepcost"),
        )
    )


def allocated() -> int:
    """Bytes that this process has allocated and not freed (mallinfo2(3))."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Counts
    counts = mallinfo2()
    return int(counts.in_use + counts.mapped)


class Peak:
    """`with Peak() as peak: ...`: `peak.n_bytes` is the most that was allocated beyond what was before."""

    def __init__(self) -> None:
        self._before = self._most = allocated()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def n_bytes(self) -> int:
        """Bytes, at the most."""
        return self._most - self._before

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            self._most = max(self._most, allocated())


def main() -> None:
    """See the module's docstring."""
    how, n_frames = sys.argv[1], int(sys.argv[2])
    encodec = build("small").model.audio_encoder
    tokens = np.random.default_rng(0).integers(0, 2048, (4, n_frames)).astype(np.int16)
    codec.decode(encodec, tokens[:, :150])  # warm
    started = time.perf_counter()
    with Peak() as peak:
        if how == "chunked":
            audio = codec.decode(encodec, tokens)
        else:
            with torch.inference_mode():
                codes = torch.from_numpy(tokens.astype(np.int64))[None, None]
                audio = encodec.decode(codes, [None]).audio_values.numpy()
    print(time.perf_counter() - started, (peak.n_bytes - audio.nbytes) / 1e9)


if __name__ == "__main__":
    main()
