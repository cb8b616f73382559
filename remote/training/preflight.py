"""What would end a training hours from now, found before it starts: data, outputs, GPU, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import checkpoints, gpu
from .config import Config
from .refusal import Refusal

_OPTIMIZER_FACTOR = 4  # weights, their copy in full precision, and two moments of each: Adam


def check_places(config: Config, repository: Path, volume: Path) -> None:
    """Data are there, and what is written outlives this box. Raises Refusal."""
    empty = [folder for folder in config.audio_dirs if not _has_files(repository / folder)]
    if empty:
        one = "is no data" if len(empty) == 1 else "are no data"
        raise Refusal(f"there {one} in {', '.join(empty)}; copy them to {volume / 'data'} first")
    for name in ("output_dir", "logging_dir"):
        written = getattr(config, name)
        if written is not None and not _is_within(repository / written, volume):
            raise Refusal(
                f"{name} {written} is not on {volume} and would be lost with this box; write a relative one"
            )
        if written is not None and _is_within(repository, repository / written):
            raise Refusal(f"{name} {written} has the whole repository in it; name a folder of its own")


def check_gpu() -> None:
    """The GPU is still there. Raises Refusal."""
    if gpu.is_lost():
        raise Refusal("this box has no GPU any more, as its host has none free; stop it and rent another")


def check_room(
    config: Config, repository: Path, found: list[checkpoints.Checkpoint], goal: int | None
) -> str:
    """Whether the checkpoints to come fit on the disk; -> a remark, if it cannot be told. Raises Refusal."""
    output = repository / config.output_dir
    each = _bytes_each(config, repository, found)
    if each is None:
        return "room for checkpoints: not known before there is one"
    to_come = _to_come(config, found, goal)
    if to_come is None:
        return "save_total_limit is not set: every checkpoint is kept, and the disk may become full"
    free = shutil.disk_usage(_existing(output)).free
    if free < to_come * each:
        raise Refusal(
            f"{to_come} more checkpoints of {_size(each)} are to come, and {_size(free)} are free for"
            f" {output}; free some space, or lower save_total_limit"
        )
    return ""


def _to_come(config: Config, found: list[checkpoints.Checkpoint], goal: int | None) -> int | None:
    """How many more there will be at once. A new one is written before the oldest is deleted."""
    if config.save_total_limit and config.save_total_limit > 0:
        return max(1, config.save_total_limit + 1 - len(found))
    if goal is None or not config.save_steps:
        return None
    return max(1, (goal - (found[0].step if found else 0)) // config.save_steps)


def _bytes_each(config: Config, repository: Path, found: list[checkpoints.Checkpoint]) -> int | None:
    valid = checkpoints.newest(found)
    if valid is not None:
        return checkpoints.size(valid.folder)
    weights = _weights(config.model, repository) if config.model else 0
    return weights * (1 if config.weights_only else _OPTIMIZER_FACTOR) or None


def _weights(model: str, repository: Path) -> int:
    """Bytes of the weights that it starts from: a folder, or in Hugging Face's cache. 0: not there."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    folders = [repository / model, *hub.glob(f"models--{model.replace('/', '--')}/snapshots/*")]
    sizes = [
        sum(file.stat().st_size for file in folder.glob(pattern))
        for folder in folders
        for pattern in ("*.safetensors", "*.bin")
    ]
    return max(sizes, default=0)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
