"""Adapter folders (PEFT): small changes to a base model's weights, merged when the model is loaded.

That needs peft, which this project does not install. Does not import it, nor torch.
"""

import importlib.util
import json
from pathlib import Path

from worker.errors import BadInput

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(folder: Path) -> bool:
    """True if the folder holds an adapter."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The base model of an adapter folder: a hub id, or a folder.

    Raises BadInput for a folder that is incomplete, and where peft is not installed.
    """
    if any(folder.glob("model*.safetensors")):
        raise BadInput(
            f"{folder} holds both a model and an adapter; remove {CONFIG} to use the model alone, "
            "or move the adapter's files to a folder of their own"
        )
    try:
        base = read_config(folder)["base_model_name_or_path"]
    except (ValueError, OSError, KeyError, TypeError):
        raise BadInput(
            f"{folder / CONFIG} is damaged or names no base model; get the adapter again"
        ) from None
    if not isinstance(base, str) or not base:
        raise BadInput(f"{folder / CONFIG} names no base model; write its name to base_model_name_or_path")
    if not weights_of(folder):
        raise BadInput(f"{folder} lacks {WEIGHTS[0]}; get the adapter again")
    if importlib.util.find_spec("peft") is None:
        raise BadInput(
            f"{folder} holds an adapter (PEFT) of {base}; install what merges it (uv pip install peft), "
            "or merge it: "
            "peft.PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(NEW), "
            "and copy the base model's tokenizer files to NEW"
        )
    beside = (folder / base).resolve() if not Path(base).is_absolute() else Path(base)
    found = next((path for path in (beside, Path(base).expanduser()) if path.is_dir()), None)
    if found and is_adapter(found):
        raise BadInput(f"{folder} is an adapter of an adapter, {found}; merge that one first")
    return str(found or base)


def base_model(model: str) -> str:
    """The model whose weights are loaded: the base of an adapter folder, else the model itself."""
    folder = Path(model).expanduser()
    return base_of(folder) if is_adapter(folder) else model


def weights_of(folder: Path) -> list[Path]:
    """The adapter's weight file, if there is one."""
    return [folder / name for name in WEIGHTS if (folder / name).is_file()][:1]


def read_config(folder: Path) -> dict[str, object]:
    """The adapter's settings. Raises ValueError and OSError."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("not an object")
    return config
