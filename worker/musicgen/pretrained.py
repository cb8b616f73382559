"""Find or fetch a MusicGen checkpoint, check its files, and load it.

Takes `rehearsal`, a local folder (of a checkpoint or an adapter), or a Hugging Face id. What a user can get
wrong (unknown model, missing or truncated files, another architecture) raises BadInput before anything is
generated.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from worker.amounts import count
from worker.errors import BadInput, UserError
from worker.models import fetch, find
from worker.models.fingerprint import fingerprint
from worker.models.progress import Meter
from worker.songs import adapter, supported
from worker.songs.maker import model_name
from worker.songs.model_names import REHEARSAL

log = logging.getLogger(__name__)

LICENCE_NOTICE = (
    "MusicGen's weights are licensed CC-BY-NC 4.0: songs made with them are not for commercial use"
)
# Files of other formats, and what makes a checkpoint of them.
_FOREIGN = {
    "state_dict.bin": (
        "is in audiocraft's own format; convert it with transformers' script "
        "src/transformers/models/musicgen/convert_musicgen_transformers.py"
    ),
    "pytorch_model.bin": (
        "has its weights in pytorch_model.bin only; convert them: "
        "MusicgenForConditionalGeneration.from_pretrained(FOLDER).save_pretrained(NEW), "
        "and copy the tokenizer files to NEW"
    ),
}
_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors names them


@dataclass(frozen=True)
class Pretrained:
    """A loaded checkpoint. `revision`: the hub's commit, or a fingerprint of the folder's weights.

    An adapter's covers its own weights and its base model's revision.
    """

    model: MusicgenForConditionalGeneration
    tokenizer: Any
    name: str
    revision: str


class _Fp32ButDecoder(MusicgenForConditionalGeneration):  # type: ignore[misc]
    """MusicGen whose decoder alone is loaded in another precision than fp32.

    transformers 5 takes one dtype for all parts, but for the modules that a class names so.
    """

    _keep_in_fp32_modules_strict = ("text_encoder", "audio_encoder", "enc_to_dec_proj")


def load(model: str) -> Pretrained:
    """Load `rehearsal`, a checkpoint folder or a hub id, on the CPU.

    The decoder is loaded as it is stored, the rest in fp32. Weights that are not converted stay in the
    mapped file: they take memory that the system can reclaim, and are read when the engine copies them,
    one layer after another, to its device in its precision.
    Raises BadInput, and UserError when memory or disk space is short.
    """
    if model == REHEARSAL:
        from worker.musicgen import rehearsal  # here: only the rehearsal needs it

        with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
            try:
                with _quiet():
                    rehearsal.build(Path(temporary))
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"cannot write the rehearsal model to {temporary} ({_first_line(error)}); free space"
                ) from None
            return _load_folder(Path(temporary), REHEARSAL, None)
    folder = Path(model).expanduser()
    if adapter.is_adapter(folder):
        return _load_adapter(folder)
    if folder.is_dir():
        return _load_folder(folder, folder.resolve().name, None)
    found = _fetched(model_name(model))
    return _load_folder(found.folder, model, found.revision)


def _fetched(model: str) -> find.Here:
    """A model of the hub: as it is on this machine, else fetched; with the hub's commit."""
    supported.refuse_by_name(model)
    log.warning("%s. %s.", model, LICENCE_NOTICE)
    if found := find.here(model, os.environ):
        return found
    got = fetch.get(
        model,
        os.environ,
        tell=lambda line: log.warning("model %s: %s", model, line),
        progress=Meter(lambda now: log.warning("fetching the model: %s", now)),
    )
    return find.Here(got.folder, got.revision)


def _load_folder(folder: Path, name: str, revision: str | None) -> Pretrained:
    weights = check(folder)
    try:
        with _quiet():
            model, report = _Fp32ButDecoder.from_pretrained(
                folder,
                output_loading_info=True,
                local_files_only=True,
                dtype=_stored_dtype(weights),
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
    except MemoryError:
        raise UserError(f"not enough memory to load model {name}; use a smaller one") from None
    except Exception as error:  # whatever a damaged config or tokenizer makes transformers raise
        raise BadInput(f"model {name} cannot be loaded ({_first_line(error)}); fetch it again") from None
    if missing := sorted(report["missing_keys"]):
        raise BadInput(
            f"model {name} lacks {count(len(missing), 'weight')} ({missing[0]}, ...); fetch it again"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        key, found, wanted = mismatched[0]
        raise BadInput(
            f"model {name}: {key} has the shape {tuple(found)} where config.json asks for {tuple(wanted)}; "
            "fetch it again"
        )
    revision = revision or fingerprint((folder / "config.json").read_bytes(), weights)
    return Pretrained(model.eval(), _tokenizer(folder, name), name, revision)


def _load_adapter(folder: Path) -> Pretrained:
    """The base model with the adapter merged into its weights."""
    base_name = adapter.base_of(folder)
    base = load(base_name)
    from peft import PeftModel  # here: it is not one of this project's dependencies

    try:
        with _quiet(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = PeftModel.from_pretrained(base.model, str(folder)).merge_and_unload()
        if missing := [text for each in caught if "missing adapter keys" in (text := str(each.message))]:
            raise ValueError(missing[0])
    except MemoryError:
        raise UserError(
            f"not enough memory to merge the adapter {folder}; use a smaller base model"
        ) from None
    except Exception as error:  # whatever an adapter of another model or kind makes peft raise
        raise BadInput(
            f"the adapter {folder} cannot be merged into {base_name} ({_first_line(error)}); "
            "check base_model_name_or_path, or merge it where it was trained"
        ) from None
    config = {
        key: value for key, value in adapter.read_config(folder).items() if not key.startswith("base_model")
    }
    described = json.dumps([base.revision, config], sort_keys=True).encode()
    revision = fingerprint(described, adapter.weights_of(folder))
    return Pretrained(merged.eval(), base.tokenizer, folder.resolve().name, revision)


def _stored_dtype(weights: list[Path]) -> torch.dtype:
    """The precision of the decoder's weights in the files; fp32 if they differ."""
    stored = set()
    for path in weights:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("decoder.")]  # noqa: SIM118 (no mapping)
            stored |= {file.get_slice(name).get_dtype() for name in names}
    return _HALF.get(stored.pop(), torch.float32) if len(stored) == 1 else torch.float32


def _tokenizer(folder: Path, name: str) -> Any:
    """The checkpoint's, or its text encoder's: a Trainer saves none."""
    own = any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model"))
    place = str(folder)
    if not own:
        config: Any = supported.read_config(folder)
        place = str(config.get("text_encoder", {}).get("_name_or_path") or "google-t5/t5-base")
        log.warning("%s has no tokenizer: that of its text encoder, %s, is used", name, place)
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=own)
    except Exception as error:  # whatever a damaged tokenizer or an unreachable hub makes transformers raise
        raise BadInput(
            f"the tokenizer of model {name} cannot be loaded from {place} ({_first_line(error)}); "
            f"copy tokenizer.json and tokenizer_config.json into {folder}"
        ) from None


def check(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, after checking that it is complete and supported."""
    for name, what in _FOREIGN.items():
        if (folder / name).is_file() and not any(folder.glob("model*.safetensors")):
            raise BadInput(f"{folder} {what}")
    supported.judge(supported.read_config(folder), str(folder))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{index} is damaged; fetch the model again") from None
    else:
        names = ["model.safetensors"]
    for name in names:
        try:
            # Opening compares the header with the file's length.
            with safe_open(folder / name, framework="pt"):
                pass
        except (FileNotFoundError, OSError):
            raise BadInput(f"{folder} lacks {name}; fetch the model again") from None
        except SafetensorError:
            raise BadInput(f"{folder / name} is truncated or damaged; fetch the model again") from None
    return [folder / name for name in names]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its warning about the special token, which is harmless."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
