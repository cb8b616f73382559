"""What a training's own YAML configuration says of its folders, checkpoints and goal.

A key is found at any depth, so `output_dir` and `training: {output_dir: ...}` are the same; one that is there
twice with different values is refused. Nothing else of the file is read or judged: it is the training's.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .refusal import Refusal

_READ_YAML = Path(__file__).with_name("read_yaml.py")
# The same thing in the configurations of different trainings.
_EPOCHS = ("num_train_epochs", "num_epochs")
_MODEL = ("pretrained", "model_name_or_path")


@dataclass(frozen=True)
class Config:
    """The keys that matter here. Paths are as written: relative ones are meant from the repository's folder.

    `max_steps`, `epochs`: how far it is to go; None if the file does not say. `weights_only`: its checkpoints
    have no optimizer. `model`: the folder or hub id of the weights that it starts from.
    """

    output_dir: str
    logging_dir: str | None = None
    audio_dirs: tuple[str, ...] = ()
    save_steps: int | None = None
    save_total_limit: int | None = None
    max_steps: int | None = None
    epochs: float | None = None
    weights_only: bool = False
    model: str | None = None


def read(file: Path, python: Path) -> Config:
    """The configuration in this file, parsed by the training's Python. Raises Refusal."""
    if not file.is_file():
        raise Refusal(
            f"there is no configuration {file}; name one of the training's repository with --config"
        )
    ran = subprocess.run([str(python), "-I", str(_READ_YAML), str(file)], capture_output=True, text=True)
    if ran.returncode == 2:
        raise Refusal(f"{file} is not YAML ({ran.stderr.strip()}); correct it")
    if ran.returncode == 3:
        raise Refusal("the training's environment has no PyYAML; add pyyaml to its requirements")
    if ran.returncode != 0:
        raise Refusal(
            f"{python} cannot read {file}: {(ran.stderr.strip().splitlines() or ['no reason'])[-1]}"
        )
    return parse(json.loads(ran.stdout), file.name)


def parse(loaded: Any, name: str) -> Config:
    """The configuration in what the file's parser gave. `name`: the file, for messages. Raises Refusal."""
    if not isinstance(loaded, dict):
        raise Refusal(f"{name} has no keys; write at least output_dir")
    found = _Keys(loaded, name)
    output_dir = found.text("output_dir")
    if not output_dir:
        raise Refusal(
            f"{name} has no output_dir; write where the checkpoints go, like output_dir: checkpoints/a"
        )
    max_steps = found.whole("max_steps")
    return Config(
        output_dir=output_dir,
        logging_dir=found.text("logging_dir"),
        audio_dirs=found.texts("audio_dirs"),
        save_steps=found.whole("save_steps"),
        save_total_limit=found.whole("save_total_limit"),
        max_steps=max_steps if max_steps and max_steps > 0 else None,  # Trainer's default is -1
        epochs=found.number(*_EPOCHS),
        weights_only=found.value("save_only_model") is True,
        model=found.text(*_MODEL),
    )


class _Keys:
    """Finds values by key, whatever section they are in."""

    def __init__(self, loaded: dict[str, Any], name: str):
        self._loaded, self._name = loaded, name

    def value(self, *keys: str) -> Any:
        """The one value of the first of these keys that is there; None if none is."""
        for key in keys:
            values = [each for each in _values(self._loaded, key) if each is not None]
            if any(each != values[0] for each in values):
                raise Refusal(f"{self._name} has {key} more than once, with different values; keep one")
            if values:
                return values[0]
        return None

    def text(self, *keys: str) -> str | None:
        found: str | None = self._fitting(keys, str, "a text")
        return found

    def whole(self, *keys: str) -> int | None:
        found: int | None = self._fitting(keys, int, "a whole number")
        return found

    def number(self, *keys: str) -> float | None:
        found = self._fitting(keys, (int, float), "a number")
        return None if found is None else float(found)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.value(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) and each for each in listed):
            raise Refusal(f"{self._name}: {key} is not a list of folders; correct it")
        return tuple(listed)

    def _fitting(self, keys: tuple[str, ...], kind: Any, called: str) -> Any:
        value = self.value(*keys)
        # save_steps may be a share of all steps, which says nothing before the training knows those
        if keys == ("save_steps",) and isinstance(value, float):
            return None
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise Refusal(f"{self._name}: {keys[0]} is {json.dumps(value)}, not {called}; correct it")
        return value


def _values(mapping: dict[str, Any], key: str) -> Iterator[Any]:
    for name, value in mapping.items():
        if name == key:
            yield value
        elif isinstance(value, dict):
            yield from _values(value, key)
