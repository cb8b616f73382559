"""Whether the weights in a safetensors file are finite numbers.

A model with NaN in it loads, and may make songs of normal loudness that are noise.
Reads a whole file in chunks: memory stays bounded, time is that of reading the disk.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worker.models.safetensors_file import Damaged, Tensor

# NaN and infinity are the numbers whose exponent bits are all ones.
_EXPONENT: dict[str, tuple[np.dtype[Any], int]] = {
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F32": (np.dtype("<u4"), 0x7F80_0000),
}
CHUNK_BYTES = 8 << 20


def first_not_finite(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, in the file's order; None if all are finite.

    `tensors` as `read_header` gives them; those of other types than F16, BF16 and F32 are left out.
    Raises OSError, and Damaged for a file that has become shorter.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb") as file:
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.dtype not in _EXPONENT:
                continue
            word, ones = _EXPONENT[tensor.dtype]
            file.seek(tensor.start)
            for done in range(0, tensor.n_bytes, CHUNK_BYTES):
                chunk = buffer[: min(CHUNK_BYTES, tensor.n_bytes - done)]
                if file.readinto(chunk) < len(chunk):
                    raise Damaged("became shorter while it was read")
                if (np.frombuffer(chunk, word) & word.type(ones)).max() == ones:
                    return name
    return None
