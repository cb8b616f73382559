"""The weights of a HeartCodec by name, read from its safetensors files one at a time.

What nobody asks for is not read: of the release's 6.6 GB the encoder, the quantiser's training state and the
embedding for a missing condition. Weights come in fp32, whatever the file holds, and so they stay: upstream
warns that below fp32 the sound degrades.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


class CodecWeights:
    """`weights("norm.weight")` is one, on the CPU; `weights.of("layers.0")` those whose names begin so."""

    def __init__(self, files: Mapping[str, Any], prefix: str = ""):
        self._files, self._prefix = files, prefix

    @classmethod
    def open(cls, paths: Iterable[Path]) -> "CodecWeights":
        """The weights in these files, which hold each name once."""
        files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        return cls({name: file for file in files for name in list(file.keys())})

    def of(self, prefix: str) -> "CodecWeights":
        return CodecWeights(self._files, f"{self._prefix}{prefix}.")

    def __call__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._prefix + name].get_tensor(self._prefix + name)
        return tensor.to(torch.float32)

    def stacked(self, *names: str) -> Tensor:
        """Several, along their first dimension."""
        return torch.cat([self(name) for name in names])

    def linear(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's weight and bias."""
        return self(f"{name}.weight"), self(f"{name}.bias")

    def weight_normed(self, name: str) -> tuple[Tensor, Tensor]:
        """The same of a layer with weight norm (Salimans & Kingma 2016): lengths times directions."""
        lengths, directions = (self(f"{name}.parametrizations.weight.original{n}") for n in range(2))
        return directions * (lengths / directions.norm(dim=(1, 2), keepdim=True)), self(f"{name}.bias")
