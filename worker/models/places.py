"""Where models lie on this machine: the folder of each set, and huggingface_hub's own cache.

`env` is the environment that the worker has, which may be another than this process's.
"""

from collections.abc import Mapping
from pathlib import Path

from worker.errors import BadInput
from worker.models.sets import ModelSet

SETTING = "MUSICGEN_MODELS_DIR"


def models_folder(env: Mapping[str, str]) -> Path:
    """The folder of all sets: as set, else on a box below its root, else in the user's cache."""
    if named := env.get(SETTING):
        return expanded(named)
    if box := env.get("MUSICGEN_BOX_ROOT"):
        return expanded(box) / "models"
    return expanded("~/.cache/musicgen/models")


def folder_of(model_set: ModelSet, env: Mapping[str, str]) -> Path:
    """The folder of a set, whether it exists or not."""
    if model_set.setting and (named := env.get(model_set.setting)):
        return expanded(named)
    return models_folder(env) / folder_name(model_set.name)


def folder_name(name: str) -> str:
    """`facebook/musicgen-small` -> `facebook--musicgen-small`."""
    return name.replace("/", "--")


def hub_home(env: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps its token, and by default its cache."""
    cache = env.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(env.get("HF_HOME") or f"{cache}/huggingface")


def hub_cache(env: Mapping[str, str]) -> Path:
    """Where huggingface_hub would look for a model."""
    named = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    return expanded(named) if named else hub_home(env) / "hub"


def expanded(path: str) -> Path:
    """The whole path of one that a setting holds."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"no home folder is known for {path}; write the whole path") from None
