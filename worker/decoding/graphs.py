"""A step as CUDA graphs, one for each size, all captured before they are needed.

A size is how many columns of the cache are read, and how many slots are computed: a power of two, or all.

Each is recorded twice before it is captured: once to load what a capture must not load, once in the memory
that the graph will use. A capture then finds its memory there, and a lack of it shows outside a
capture, where torch recovers from it: in a capture it would leave the allocator waiting for the
capture's end (torch 2.13, CUDAGraph::capture_end). All graphs share one pool of memory, as they
never run at the same time.
"""

import logging
from collections.abc import Callable, Collection, Hashable
from functools import partial
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from worker.decoding.device import chain, is_out_of_memory

log = logging.getLogger(__name__)

Run = Callable[[], None]
Step = Callable[[int, int], None]  # of a size: columns, slots


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
    """One graph for each size; where the device has none or cannot capture them, the step itself.

    Holds neither the step nor its stepper: a stepper is freed as soon as nobody uses it.
    """

    def __init__(self, device: torch.device, slots: int):
        self._record = recorder(device)
        self.widths = [*(1 << k for k in range((slots - 1).bit_length())), slots]
        self._replays: dict[tuple[int, int], Run] = {}
        self._of: Hashable = None

    def capture(self, of: Hashable, buckets: Collection[int], step: Step, running: Tensor) -> None:
        """Have the graphs of `step` for these numbers of columns; none are captured if the last ones are
        `of` the same.

        `running`, the slots that advance, is False meanwhile: the step then changes nothing that is read.
        Raises torch.OutOfMemoryError, or what is_out_of_memory (device.py) recognises.
        """
        if not self._record or self._of == of:
            return
        self._replays.clear()
        self._of, were = None, running.clone()
        running.zero_()
        try:
            # The largest is first: its memory holds the others.
            for width, bucket in sorted(product(self.widths, buckets), reverse=True):
                self._replays[bucket, width] = self._record(partial(step, bucket, width))
            self._of = of
        except RuntimeError as error:
            self._replays.clear()
            if is_out_of_memory(error):
                raise
            self._record = None
            reason = str(chain(error)[-1]).partition("\n")[0]
            log.warning("CUDA graphs cannot be captured (%s): steps are slower from now on", reason)
        finally:
            running.copy_(were)

    def run(self, bucket: int, n_slots: int, step: Step) -> None:
        """Make the step: replay the graph of the smallest size that has so many slots."""
        if self._record:
            self._replays[bucket, min(width for width in self.widths if width >= n_slots)]()
        else:
            step(bucket, n_slots)
