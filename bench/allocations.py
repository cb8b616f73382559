"""Bytes allocated on a device within a `with` block.

    with allocations.of(device) as taken: ...
    taken.after, taken.peak

On a CPU it counts what torch, oneDNN and numpy allocate alike, as glibc (2.33 or newer) reports it: resident
memory would depend on what the system pages out meanwhile. On a GPU it counts what torch allocates.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

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


@dataclass
class Taken:
    """Bytes beyond what was allocated before: at the end of the block, and at the most within it."""

    after: int = 0
    peak: int = 0


@contextmanager
def of(device: torch.device) -> Iterator[Taken]:
    """See the module's docstring; the numbers are there when the block has ended."""
    taken = Taken()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield taken
        taken.after = torch.cuda.memory_allocated(device) - before
        taken.peak = torch.cuda.max_memory_allocated(device) - before
        return
    before, over = _allocated(), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            taken.peak = max(taken.peak, _allocated() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield taken
    finally:
        over.set()
        watcher.join()
        taken.after = _allocated() - before
        taken.peak = max(taken.peak, taken.after)


def _allocated() -> int:
    """Bytes that this process has allocated and not freed (mallinfo2(3))."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Counts
    counts = mallinfo2()
    return int(counts.in_use + counts.mapped)
