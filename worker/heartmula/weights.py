"""A checkpoint's weights by name, read from its safetensors files when they are asked for.

The files are mapped: a weight takes memory when it is copied to its device in its precision, and only one
layer's at a time. What the files hold was compared with config.json by worker/models/heartmula_tree.py.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class Weights:
    """The tensors of some files: {path: names}."""

    def __init__(self, files: Mapping[Path, Iterable[str]]):
        self._file_of = {name: path for path, names in files.items() for name in names}
        self._open = {path: safe_open(path, framework="pt") for path in files}

    def __getitem__(self, name: str) -> Tensor:
        """A weight as it is stored. Raises KeyError if there is none of this name."""
        tensor: Tensor = self._open[self._file_of[name]].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor
