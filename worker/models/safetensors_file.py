"""What a safetensors file says of itself: its tensors' names, types, shapes and positions.

The format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes without gaps.
So the header fixes the file's exact length, and a truncated file is found without reading gigabytes.
Reads the header only; needs the standard library alone.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.amounts import size

ITEM_BYTES = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"], 1),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 2),
    **dict.fromkeys(["U32", "I32", "F32"], 4),
    **dict.fromkeys(["U64", "I64", "F64"], 8),
}
_MAX_HEADER = 100_000_000  # the format's own limit


class Damaged(ValueError):
    """Not a whole safetensors file. The text follows the file's name: `is truncated (1.2 GB of 4.9 GB)`."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: `dtype` as safetensors names it, `start` in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


def read_header(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name. Raises Damaged unless they fill the file exactly, and OSError."""
    with path.open("rb") as file:
        n_file = os.fstat(file.fileno()).st_size
        n_header = int.from_bytes(file.read(8), "little")
        if n_file < 8:
            raise Damaged(f"is truncated ({n_file} bytes)")
        if n_header > _MAX_HEADER:
            raise Damaged("is not a safetensors file")
        if n_header > n_file - 8:
            raise Damaged(f"is truncated ({size(n_file)})")
        text = file.read(n_header)
    header = _parsed(text)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, facts, 8 + n_header) for name, facts in header.items()}
    end = 8 + n_header
    for tensor in sorted(tensors.values(), key=lambda each: (each.start, each.n_bytes)):
        if tensor.start != end:
            raise Damaged("has a damaged header (its tensors overlap or leave gaps)")
        end += tensor.n_bytes
    if n_file < end:
        raise Damaged(f"is truncated ({size(n_file)} of {size(end)})")
    if n_file > end:
        raise Damaged(f"is longer than its header says ({n_file:,} bytes, not {end:,})")
    return tensors


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except Damaged:
        raise
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise Damaged("has a damaged header")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Damaged("has a damaged header (a name stands in it twice)")
    return found


def _tensor(name: str, facts: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in [*shape, begin, end])
        n_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"has a damaged header (at {name})") from None
    if not whole or end - begin != n_bytes:
        raise Damaged(f"has a damaged header (at {name})")
    return Tensor(dtype, tuple(shape), data_start + begin, n_bytes)
