"""The checkpoints of transformers' Trainer: which is the newest that can be resumed, and why not the others.

Trainer itself takes the folder with the highest number. If that was half written, resuming crashes; if its
optimizer, scheduler or random state is missing, it goes on silently with new ones. So a checkpoint is valid
only if all that resuming reads is there and whole. Files are judged by their structure and length: a torch
archive has its directory at its end, a safetensors file its layout at its beginning. What they contain is
not read.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE = "trainer_state.json"
BROKEN = "broken"
# Trainer's own, while it saves because of SIGTERM.
_SENTINEL = "checkpoint-is-incomplete.txt"
_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """One folder `checkpoint-STEP`. `why_not`: what is wrong with it; empty if it is valid."""

    folder: Path
    step: int
    why_not: str = ""


def find(output_dir: Path, weights_only: bool = False) -> list[Checkpoint]:
    """Every checkpoint there, the newest first."""
    found = [(int(name[1]), path) for path in _folders(output_dir) if (name := _NAME.fullmatch(path.name))]
    return [
        Checkpoint(path, step, why_not(path, step, weights_only))
        for step, path in sorted(found, reverse=True)
    ]


def newest(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The newest valid one of these, which are the newest first."""
    return next((one for one in checkpoints if not one.why_not), None)


def set_aside(checkpoint: Checkpoint) -> Path:
    """Move a broken one into `broken/`; -> where it is now.

    In its place it would count when Trainer deletes the oldest, and good ones would go for it.
    """
    target = checkpoint.folder.parent / BROKEN / checkpoint.folder.name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{checkpoint.folder.name}.{number}")
    target.parent.mkdir(exist_ok=True)
    return checkpoint.folder.rename(target)


def why_not(folder: Path, step: int, weights_only: bool = False) -> str:
    """What is wrong with this checkpoint, beginning with the file's name; empty if it is valid."""
    try:
        if (folder / _SENTINEL).exists():
            return f"{_SENTINEL} is there: saving it was not finished"
        return (
            _state_problem(folder, step)
            or _weights_problem(folder)
            or ("" if weights_only else _resume_problem(folder))
        )
    except OSError as error:
        return f"{Path(str(error.filename or folder)).name} cannot be read ({error.strerror or error})"


def state(folder: Path) -> dict[str, Any]:
    """The content of its trainer_state.json; empty if there is none that can be read."""
    try:
        loaded = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def size(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _folders(output_dir: Path) -> list[Path]:
    try:
        return [path for path in output_dir.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _state_problem(folder: Path, step: int) -> str:
    # Trainer writes it last.
    if not (folder / STATE).is_file():
        return f"{STATE} is missing"
    found = state(folder)
    if not found:
        return f"{STATE} is damaged"
    if found.get("global_step") != step:
        return f"{STATE} is of step {found.get('global_step')!r:.20}, not {step}"
    return ""


def _weights_problem(folder: Path) -> str:
    for name in _WEIGHTS:
        if (folder / name).exists():
            return _file_problem(folder / name)
    for name in _INDEXES:
        if (folder / name).exists():
            return _shards_problem(folder / name)
    # with DeepSpeed the weights may be in its own folder alone
    return "" if _deepspeed(folder) else f"{_WEIGHTS[0]} is missing"


def _shards_problem(index: Path) -> str:
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{index.name} is damaged"
    return next((why for name in sorted(shards) if (why := _file_problem(index.parent / name))), "")


def _resume_problem(folder: Path) -> str:
    optimizer = next((name for name in ("optimizer.pt", "optimizer.bin") if (folder / name).exists()), "")
    names = [] if _deepspeed(folder) else [optimizer or "optimizer.pt", "scheduler.pt"]
    names += sorted(path.name for path in folder.glob("rng_state*.pth")) or ["rng_state.pth"]
    names += [name for name in ("scaler.pt",) if (folder / name).exists()]
    return next((why for name in names if (why := _file_problem(folder / name))), "")


def _deepspeed(folder: Path) -> bool:
    """DeepSpeed has saved optimizer and scheduler in its own folder, which the file `latest` names."""
    latest = folder / "latest"
    tag = latest.read_text("utf-8").strip() if latest.is_file() else ""
    return bool(tag) and any(path.stat().st_size for path in (folder / tag).glob("*.pt"))


def _file_problem(file: Path) -> str:
    if not file.is_file():
        return f"{file.name} is missing"
    whole = _is_whole_safetensors(file) if file.suffix == ".safetensors" else _is_whole_archive(file)
    return "" if whole else f"{file.name} is damaged or half written"


def _is_whole_safetensors(file: Path) -> bool:
    """Its layout can be read, and the file ends where its last tensor does."""
    total = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= total - 8:
            return False
        try:
            layout = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in layout.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return False
    return bool(ends) and total == 8 + length + max(ends)


def _is_whole_archive(file: Path) -> bool:
    """A torch archive, a zip file: its directory, which is written last, is there and fits."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return False
