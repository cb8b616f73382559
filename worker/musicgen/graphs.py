"""A step as CUDA graphs, one for each size, all captured before they are needed.

Each is recorded twice before it is captured: once to load what a capture must not load, once in the memory
that the graph will use. A capture then finds its memory there, and a lack of it shows outside a
capture, where torch recovers from it: in a capture it would leave the allocator waiting for the
capture's end (torch 2.13, CUDAGraph::capture_end). All graphs share one pool of memory, as they
never run at the same time.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import torch

Size = tuple[int, int]
Run = Callable[[], None]


class Recorder(Protocol):
    """Captures graphs."""

    def __call__(self, work: Run) -> Run:
        """-> replays what `work` launches. Runs `work` itself too, at least once.

        Raises torch.OutOfMemoryError, or what is_out_of_memory (device.py) recognises.
        """


class CudaRecorder:
    """Captures CUDA graphs into one pool, on a stream of its own."""

    def __init__(self, device: torch.device):
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.MemPool()

    def __call__(self, work: Run) -> Run:
        """See Recorder."""
        current = torch.cuda.current_stream(self._device)
        # A pool keeps memory for each stream: all three runs are on the same one.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
            with torch.cuda.use_mem_pool(self._pool):
                work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be decoding: capture this thread's calls only.
        captured = torch.cuda.graph(
            graph,
            pool=self._pool.id,  # type: ignore[arg-type]
            stream=self._stream,
            capture_error_mode="thread_local",
        )
        # If a capture fails, `captured` leaves its stream the current one; the outer `with` does not.
        with torch.cuda.stream(current), captured:
            work()
        return graph.replay


def recorder(device: torch.device) -> Recorder | None:
    """What captures this device's graphs; None where there are none."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Graphs:
    """One graph for each size."""

    def __init__(self, record: Recorder):
        self._record = record
        self._replays: dict[Size, Run] = {}

    def capture(self, sizes: Iterable[Size], work: Callable[[int, int], None]) -> None:
        """Replace all graphs by those of `work(*size)`. The largest is first: its memory holds the others."""
        self._replays.clear()
        for bucket, slots in sorted(sizes, key=lambda size: size[::-1], reverse=True):
            self._replays[bucket, slots] = self._record(partial(work, bucket, slots))

    def replay(self, size: Size) -> None:
        """Launch the graph of a size that was captured."""
        self._replays[size]()
