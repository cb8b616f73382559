"""A codec that is moved from the GPU to the CPU when memory runs out while it works."""

import logging
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch

from worker.decoding.beside import beside
from worker.decoding.device import is_out_of_memory

log = logging.getLogger(__name__)


class Codec(Protocol):
    """What can be moved: itself, or a copy on the CPU."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def to(self, device: Any) -> Any:
        """The same codec on that device."""


Moved = TypeVar("Moved", bound=Codec)
Result = TypeVar("Result")


class Offload(Generic[Moved]):
    """A codec, on a GPU as long as that has memory for its work. For several threads at once."""

    def __init__(self, codec: Moved):
        self.codec = codec
        self._has_moved = False

    def run(self, work: Callable[[Moved], Result]) -> Result:
        """What `work` returns; it is done again, on the CPU, when the GPU's memory runs out in it.

        All later work is done on the CPU then: with every core, as songs are still generated on the GPU.
        """
        while True:
            codec = self.codec
            where = codec.device
            with beside(where, one_core=not self._has_moved):
                try:
                    return work(codec)
                except RuntimeError as error:
                    # Another thread may have moved it in the middle of this one's work.
                    has_moved = self.codec.device != where
                    if where.type == "cpu" or not (has_moved or is_out_of_memory(error)):
                        raise
            if not has_moved:
                log.warning(
                    "the GPU has no memory left for decoding: songs are decoded on the CPU from now on"
                )
                self.codec, self._has_moved = codec.to("cpu"), True
