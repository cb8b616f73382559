"""What a model needs of the machine that runs it: GPU memory, RAM, and room for its files.

    of("heartmula", env).gpu_gb     # 16.3: in half precision, one song at a time

The least with which it runs, in GB of 10^9 bytes; more memory is more songs at once. A HeartMuLa's follow
from the shapes of its weights and of its cache, and were not measured on a GPU. Imports no torch, and
runs before anything is installed: remote/check.py asks it on a box.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.errors import BadInput
from worker.models import places, sets
from worker.models.heartmula_config import CodecConfig, Config, MulaConfig, parse
from worker.models.heartmula_shapes import Shapes, codec_shapes, mula_shapes
from worker.models.heartmula_tree import CODEC, MULA
from worker.songs import families
from worker.songs.families import HEARTMULA_NAMES, HEARTMULA_REHEARSAL
from worker.songs.model_names import REHEARSAL

# MusicGen's weights in half precision, one song at a time, and room for activations.
_MUSICGEN_GPU_GB = {"small": 2.0, "medium": 5.0, "large": 9.0}
_UNKNOWN_GPU_GB, _UNKNOWN_GB = 5.0, 8.5  # of somebody's MusicGen: as a medium one
# The engine's own figures (worker/heartmula/engine.py, worker/decoding/device.py).
_POSITIONS = 4096  # of a song of five minutes with its lyrics
_SPARE_GB = 1.5  # activations, and decoding finished songs
# Of the codec's weights, what the engine does not keep: worker/heartmula/codec_weights.py.
_NOT_KEPT = (
    *("scalar_model.encoder.", "project_in.", "embed_avg", "cluster_size", "initted", "zero_cond"),
    "adaln_single",  # only what it makes of each step is kept
)
_PROCESS_GB = 4.0  # Python with torch and CUDA


@dataclass(frozen=True)
class Needs:
    """In GB. `gpu_parts`: what the GPU's memory is for, empty where that is not computed."""

    gpu_gb: float
    ram_gb: float
    files_gb: float
    gpu_parts: tuple[tuple[float, str], ...] = ()

    def gpu(self) -> str:
        """`16.3 GB of GPU memory (7.9 language model, ...)`."""
        parts = ", ".join(f"{gb:.1f} {what}" for gb, what in self.gpu_parts)
        return f"{self.gpu_gb:.1f} GB of GPU memory" + (f" ({parts})" if parts else "")


def of(model: str, env: Mapping[str, str]) -> Needs:
    """Those of a model as it is given: a name, or a folder."""
    if model in (REHEARSAL, HEARTMULA_REHEARSAL):
        return Needs(gpu_gb=0.5, ram_gb=0.5, files_gb=0.0)
    if families.of(model) is families.HEARTMULA:
        return _of_heartmula(_tree(model, env), env)
    files_gb = _files_gb(model)
    size = model.rpartition("-")[2]
    return Needs(_MUSICGEN_GPU_GB.get(size, _UNKNOWN_GPU_GB), ram_gb=files_gb, files_gb=files_gb)


def _of_heartmula(tree: Path, env: Mapping[str, str]) -> Needs:
    mula = _config(MulaConfig, tree / MULA / "config.json")
    codec = _config(CodecConfig, tree / CODEC / "config.json")
    item = 4 if env.get("MUSICGEN_DTYPE") == "fp32" else 2
    of_mula, of_codec = mula_shapes(mula), codec_shapes(codec)
    kept = {name: shape for name, shape in of_codec.items() if not any(each in name for each in _NOT_KEPT)}
    backbone = mula.backbone
    # Keys and values of each layer, in both halves.
    cached = 2 * 2 * backbone.layers * backbone.kv_heads * (backbone.width // backbone.heads) * _POSITIONS
    parts = (
        (_gb(of_mula, item), "language model"),
        (_gb(kept, 4), "codec"),
        (cached * item / 1e9, "a song's cache"),
        (_SPARE_GB, "to spare"),
    )
    largest_gb = max(math.prod(shape) for shape in of_mula.values()) * 4 / 1e9
    return Needs(
        gpu_gb=sum(gb for gb, _ in parts),
        # Weights are mapped and go to the GPU one by one.
        ram_gb=_PROCESS_GB + largest_gb,
        files_gb=_gb(of_mula | of_codec, 4),  # as they are published
        gpu_parts=parts,
    )


def _tree(model: str, env: Mapping[str, str]) -> Path:
    if model in HEARTMULA_NAMES:
        return places.folder_of(sets.find(model), env)
    return Path(model).expanduser()


def _config(kind: type[Config], path: Path) -> Config:
    """As the file has it; the release's where it cannot be read: what is wrong there is found elsewhere."""
    try:
        settings = json.loads(path.read_text("utf-8"))
        return parse(kind, settings if isinstance(settings, dict) else {})
    except (OSError, ValueError):
        return kind()


def _gb(shapes: Shapes, item_bytes: int) -> float:
    return sum(map(math.prod, shapes.values())) * item_bytes / 1e9


def _files_gb(model: str) -> float:
    try:
        about = sets.find(model).about_bytes
    except BadInput:
        about = None
    return _UNKNOWN_GB if about is None else about / 1e9
