"""A stand-in for peft, where that is not installed: it merges LoRA adapters of linear layers, nothing else.

peft needs accelerate, with which every process that imports transformers starts later.
"""

import json
import warnings
from pathlib import Path

from safetensors.torch import load_file


class PeftModel:
    """A base model and the product that its adapter adds to each of its target modules."""

    def __init__(self, model, factors, scale):
        self._model, self._factors, self._scale = model, factors, scale

    @classmethod
    def from_pretrained(cls, model, folder):
        config = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))
        assert config["peft_type"] == "LORA"
        there = load_file(Path(folder) / "adapter_model.safetensors")
        factors, missing = {}, []
        for name, _ in model.named_modules():
            if name.rpartition(".")[2] in config["target_modules"]:
                keys = [f"base_model.model.{name}.lora_{side}.weight" for side in "AB"]
                missing += [key for key in keys if key not in there]
                factors[name] = [there.get(key) for key in keys]
        if missing:
            warnings.warn(
                f"Found missing adapter keys while loading the checkpoint: {missing}.", stacklevel=2
            )
        return cls(model, factors, config["lora_alpha"] / config["r"])

    def merge_and_unload(self):
        for name, (a, b) in self._factors.items():
            if a is not None and b is not None:
                self._model.get_submodule(name).weight.data += self._scale * b @ a
        return self._model
