"""Whether a model must be downloaded first, and how large it is. Uses no network."""

from collections.abc import Mapping
from pathlib import Path

from worker.amounts import size
from worker.songs import adapter, supported
from worker.songs.maker import REHEARSAL

# The files that the worker fetches, in fp32.
_BYTES = {
    "facebook/musicgen-small": 2.4e9,
    "facebook/musicgen-medium": 8.0e9,
    "facebook/musicgen-large": 13.7e9,
}


def download_bytes(model: str, env: Mapping[str, str]) -> float | None:
    """Bytes to fetch before the first song: 0 if the model is here, None if its size is not known.

    Of an adapter folder, those of its base model.
    """
    model = adapter.base_model(model)
    if model == REHEARSAL or Path(model).expanduser().is_dir() or _cached(model, env):
        return 0
    return _BYTES.get(model)


def described(model: str, env: Mapping[str, str]) -> str:
    """`model facebook/musicgen-small, 2.4 GB to download first`."""
    n_bytes = download_bytes(model, env)
    if (base := adapter.base_model(model)) != model:
        model = f"{model}, an adapter of {base}"
    if n_bytes is None:
        return f"model {model}, to be downloaded first"
    return f"model {model}, " + (
        f"{size(n_bytes)} to download first" if n_bytes else "which is on this machine"
    )


def refuse_unsupported(model: str, env: Mapping[str, str]) -> None:
    """Raises BadInput for a model that is known not to run, and an adapter that cannot be merged here."""
    model = adapter.base_model(model)
    if model != REHEARSAL:
        supported.refuse(model, _cached(model, env))


def _cached(model: str, env: Mapping[str, str]) -> Path | None:
    """The folder of a whole snapshot in the hub's cache, where huggingface_hub would look for it."""
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub").expanduser()
    snapshots = cache / f"models--{model.replace('/', '--')}" / "snapshots"
    # A file is linked there when it is complete, and the weights are the last to be.
    whole = (found.parent for found in snapshots.glob("*/*.safetensors"))
    return next((folder for folder in whole if (folder / "config.json").exists()), None)
