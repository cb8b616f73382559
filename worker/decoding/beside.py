"""Work in another thread beside generation: on a GPU in a stream of its own, on a CPU on one core."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_helper = threading.local()


@contextmanager
def beside(device: torch.device, one_core: bool = True) -> Iterator[None]:
    """For work in a helping thread; in the main thread nothing changes."""
    if threading.current_thread() is threading.main_thread():
        yield
    elif device.type == "cuda":
        if not hasattr(_helper, "stream"):  # one for each thread: every stream keeps memory of its own
            _helper.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(_helper.stream):
            yield
    elif not one_core:
        yield
    else:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)
