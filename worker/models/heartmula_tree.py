"""Whether a folder holds a whole HeartMuLa: the language model, its codec, and the files that both need.

    FOLDER/gen_config.json, tokenizer.json
    FOLDER/HeartMuLa-oss-3B/config.json, model.safetensors (or shards and model.safetensors.index.json)
    FOLDER/HeartCodec-oss/config.json,   the same

It comes from three repositories, and heartlib loads what is half of it: with weights missing it makes
plausible noise. So every weight's name, shape and type is compared with what the config asks for; that
reads headers only. Does not import torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from worker.amounts import count
from worker.errors import BadInput
from worker.models.heartmula_config import CodecConfig, GenerationConfig, MulaConfig, parse
from worker.models.heartmula_shapes import (
    FLAG,
    FLAG_SHAPES,
    Shape,
    Shapes,
    codec_shapes,
    mula_shapes,
)
from worker.models.safetensors_file import Damaged, Tensor, read_header

Config = TypeVar("Config", MulaConfig, CodecConfig, GenerationConfig)
Weights = dict[Path, dict[str, Tensor]]  # of each file

MULA, CODEC = "HeartMuLa-oss-3B", "HeartCodec-oss"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("gen_config.json", "tokenizer.json", f"{MULA}/config.json", f"{CODEC}/config.json")
# What the user can do about nearly all of it.
FETCH = "fetch it: `inv models --get heartmula-3b`, on a box `fab models --get heartmula-3b`"

# Models that were published for the codec of 2026-01-23. Their own files do not say so: the weights of
# all releases have the same names and shapes.
FOR_NEW_CODEC = frozenset(
    {"HeartMuLa/HeartMuLa-RL-oss-3B-20260123", "HeartMuLa/HeartMuLa-oss-3B-happy-new-year"}
)
NEW_CODEC, OLD_CODEC = "2026-01-23", "before 2026-01-23"

_FLOATS = ("F32", "F16", "BF16")
_NAMED = 3  # in one message, of what may be hundreds


class Unfit(BadInput):
    """These files are no HeartMuLa. `what`: is wrong, without what to do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {FETCH}")
        self.what = what


@dataclass(frozen=True)
class Tree:
    """A checked folder. `codec_release`: NEW_CODEC or OLD_CODEC, by how its quantiser is stored.

    A copy of the new codec that heartlib has saved anew looks like the old one.
    """

    folder: Path
    generation: GenerationConfig
    mula: MulaConfig
    codec: CodecConfig
    mula_weights: Weights
    codec_weights: Weights
    codec_release: str


def check(folder: Path, *, model: str | None = None, finite: bool = False) -> Tree:
    """The tree in `folder`. Raises Unfit, in one line, unless it is whole and its parts fit.

    `model`: the repository that the language model is known to come from; then an old codec beside a
    newer model is refused. With `finite`, all 22 GB are read for NaN and infinity. A file that cannot be
    read is another BadInput.
    """
    try:
        return _check(folder, model, finite)
    except OSError as error:
        raise BadInput(
            f"{error.filename or folder} cannot be read ({error.strerror or error}); "
            "check its permissions and the disk"
        ) from None


def _check(folder: Path, model: str | None, finite: bool) -> Tree:
    _refuse_lacking(folder)
    generation = _config(GenerationConfig, folder / "gen_config.json")
    mula = _config(MulaConfig, folder / MULA / "config.json", "heartmula")
    codec = _config(CodecConfig, folder / CODEC / "config.json", "heartcodec")
    _refuse_misfits(folder, generation, mula, codec)
    mula_weights, codec_weights = _weights(folder / MULA), _weights(folder / CODEC)
    _compare(folder / MULA, mula_weights, mula_shapes(mula))
    flag = _flag(codec_weights)
    _compare(folder / CODEC, codec_weights, codec_shapes(codec, flag))
    release = NEW_CODEC if flag == (1,) else OLD_CODEC
    if model in FOR_NEW_CODEC and release == OLD_CODEC:
        _bad(f"{folder / CODEC} looks like a codec from {OLD_CODEC}, and {model} needs that of {NEW_CODEC}")
    if finite:
        _refuse_not_finite(mula_weights | codec_weights)
    return Tree(folder, generation, mula, codec, mula_weights, codec_weights, release)


def _refuse_lacking(folder: Path) -> None:
    if not folder.is_dir():
        _bad(f"there is no folder {folder}")
    if not any(folder.iterdir()):
        _bad(f"{folder} is empty")
    if lacking := [name for name in FILES if not (folder / name).is_file()]:
        _bad(f"{folder} lacks {_listed(lacking)}")


def _config(kind: type[Config], path: Path, model_type: str | None = None) -> Config:
    settings = _object(path)
    if model_type and settings.get("model_type") != model_type:
        _bad(f"{path} describes a {settings.get('model_type')!r} model, not {model_type}")
    try:
        return parse(kind, settings)
    except ValueError as error:
        _bad(f"{path}: {error}")


def _refuse_misfits(folder: Path, generation: GenerationConfig, mula: MulaConfig, codec: CodecConfig) -> None:
    """Raises BadInput where one part's numbers would be indices out of another's range."""
    if mula.audio_num_codebooks != codec.num_quantizers:
        _bad(
            f"{folder}: the model makes {mula.audio_num_codebooks} codebooks, its codec knows "
            f"{codec.num_quantizers}"
        )
    # Of the real one, 8193 ends a song and the codec has 8192 codes: 8192 is neither.
    if not 0 < generation.audio_eos_id <= min(codec.codebook_size + 1, mula.audio_vocab_size):
        _bad(
            f"{folder}: gen_config.json ends a song at token {generation.audio_eos_id}, "
            f"the codec has {codec.codebook_size} codes and the model {mula.audio_vocab_size} tokens"
        )
    last = max(generation.text_bos_id, generation.text_eos_id, _last_token(folder / "tokenizer.json"))
    if last >= mula.text_vocab_size:
        _bad(f"{folder}: the tokenizer goes up to token {last}, the model to {mula.text_vocab_size - 1}")


def _last_token(path: Path) -> int:
    tokenizer = _object(path)
    try:
        vocabulary = tokenizer["model"]["vocab"].values()
        added = [token["id"] for token in tokenizer.get("added_tokens", [])]
        return max(int(each) for each in [*vocabulary, *added])
    except (KeyError, TypeError, ValueError, AttributeError):
        _bad(f"{path} is not a BPE tokenizer")


def _weights(folder: Path) -> Weights:
    """The headers of the folder's weight files, which hold every tensor once and as the index says."""
    index = folder / INDEX
    sharded = index.is_file()
    weight_map = _weight_map(index) if sharded else {}
    present = {path.name for path in folder.glob("*.safetensors") if path.exists()}  # else a dead link
    if not sharded and present and SINGLE not in present:
        _bad(f"{folder} lacks {INDEX}")
    names = set(weight_map.values()) if sharded else {SINGLE}
    if lacking := sorted(names - present):
        _bad(f"{folder} lacks {_listed(lacking)}")
    if strange := sorted(name for name in present - names if name.startswith("model")):
        _bad(
            f"{folder} holds {_listed(strange)}, which {INDEX if sharded else SINGLE} does not name: "
            "files of two downloads; remove the folder"
        )
    weights = {folder / name: _header(folder / name) for name in sorted(names)}
    home: dict[str, Path] = {}
    for path, tensors in weights.items():
        for name in tensors:
            if name in home:
                _bad(f"{folder}: {name} is both in {home[name].name} and in {path.name}")
            home[name] = path
    if elsewhere := [
        f"{name} in {file}" for name, file in weight_map.items() if home.get(name) != folder / file
    ]:
        _bad(f"{index} is wrong: there is no {_listed(elsewhere)}")
    return weights


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = _object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _bad(f"{index} is damaged")
    for file in weight_map.values():
        if not isinstance(file, str) or not file or Path(file).name != file:
            _bad(f"{index} is damaged (it names {file!r})")
    return weight_map


def _header(path: Path) -> dict[str, Tensor]:
    try:
        return read_header(path)
    except Damaged as error:
        _bad(f"{path} {error}")


def _flag(weights: Weights) -> Shape:
    """The shape in which the quantiser's flags are stored: that of the first, which all must have."""
    shapes = (
        tensor.shape
        for tensors in weights.values()
        for name, tensor in tensors.items()
        if name.endswith(FLAG)
    )
    first = next(shapes, ())
    return first if first in FLAG_SHAPES else ()


def _compare(folder: Path, weights: Weights, wanted: Shapes) -> None:
    found = {name: tensor for tensors in weights.values() for name, tensor in tensors.items()}
    if missing := [name for name in wanted if name not in found]:
        _bad(f"{folder} lacks {len(missing)} of {count(len(wanted), 'weight')}: {_listed(missing)}")
    if different := [
        f"{name} has the shape {list(found[name].shape)} where config.json asks for {list(shape)}"
        for name, shape in wanted.items()
        if found[name].shape != shape
    ]:
        _bad(f"{folder}: {_listed(different, 1)}")
    if strange := [
        f"{name} is {found[name].dtype}"
        for name in wanted
        if found[name].dtype not in (*_FLOATS, "BOOL" if name.endswith(FLAG) else "F32")
    ]:
        _bad(f"{folder}: {_listed(strange)}, not {', '.join(_FLOATS)}")
    # Others than these are harmless: masks and caches that a library saved along.
    families = {_family(name) for name in wanted}
    if more := sorted(name for name in found.keys() - wanted.keys() if _family(name) in families):
        _bad(f"{folder} has weights of more layers than config.json says: {_listed(more)}")


def _family(name: str) -> str:
    """The name without its numbers: the same for all layers."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def _refuse_not_finite(weights: Weights) -> None:
    try:
        from worker.models.finite import first_not_finite  # here: numpy may not be on a user's machine
    except ModuleNotFoundError as error:
        raise BadInput(
            f"every checksum is right, but to read the weights takes {error.name}, which is not installed; "
            "install the worker's packages (uv sync), or verify it on a box"
        ) from None

    for path, tensors in weights.items():
        try:
            name = first_not_finite(path, tensors)
        except Damaged as error:
            _bad(f"{path} {error}")
        if name:
            _bad(f"{path}: {name} holds NaN or infinity")


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        _bad(f"{path} is damaged: not JSON, or no object")
    return content


def _listed(names: list[str], most: int = _NAMED) -> str:
    """`a, b, c and 9 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _bad(what: str) -> NoReturn:
    raise Unfit(what) from None
