"""Whether a model must be downloaded first, and how large it is. Uses no network."""

from collections.abc import Mapping
from pathlib import Path

from worker.amounts import size
from worker.errors import BadInput
from worker.models import find, sets
from worker.songs import adapter, families, licences, supported
from worker.songs.families import HEARTMULA_REHEARSAL
from worker.songs.model_names import REHEARSAL


def download_bytes(model: str, env: Mapping[str, str]) -> float | None:
    """Bytes to fetch before the first song: 0 if the model is here, None if its size is not known.

    Of an adapter folder, those of its base model.
    """
    model = adapter.base_model(model)
    if (
        model in (REHEARSAL, HEARTMULA_REHEARSAL)
        or Path(model).expanduser().is_dir()
        or find.here(model, env)
    ):
        return 0
    try:
        return sets.find(model).about_bytes
    except BadInput:  # raised where it is used
        return None


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


def refuse_other_use(model: str, commercial: bool) -> None:
    """Raises BadInput if the songs are for commercial use, and the weights' licence does not allow it."""
    if commercial:
        licences.refuse_commercial_use(model)


def refuse_unsupported(model: str, env: Mapping[str, str]) -> None:
    """Raises BadInput for a model that is known not to run, and an adapter that cannot be merged here."""
    family = families.of(model)
    model = adapter.base_model(model)
    if family is families.MUSICGEN and model != REHEARSAL:
        found = find.here(model, env)
        supported.refuse(model, found and found.folder)
