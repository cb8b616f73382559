"""Whether a model must be downloaded first, and how large it is. Uses no network."""

from collections.abc import Mapping
from pathlib import Path

from worker.amounts import size
from worker.errors import BadInput
from worker.models import find, heartmula, needs, places, sets
from worker.songs import adapter, families, licences, maker, supported
from worker.songs.families import HEARTMULA_NAMES, HEARTMULA_REHEARSAL
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
    """`model facebook/musicgen-small, 2.4 GB to download first`.

    With the commands for a HeartMuLa, which the worker does not download by itself.
    """
    n_bytes = download_bytes(model, env)
    if (base := adapter.base_model(model)) != model:
        model = f"{model}, an adapter of {base}"
    if n_bytes is None:
        return f"model {model}, to be downloaded first"
    if not n_bytes:
        return f"model {model}, which is on this machine"
    by_hand = (
        f": on this machine `inv models --get {HEARTMULA_NAMES[model]}`, on a rented one `fab install`"
        if model in HEARTMULA_NAMES
        else ""
    )
    return f"model {model}, {size(n_bytes)} to download first{by_hand}"


def needs_lines(model: str, env: Mapping[str, str]) -> list[str]:
    """What the model needs of a machine with a GPU, and of which parts that is the sum."""
    if model in (REHEARSAL, HEARTMULA_REHEARSAL):
        return []
    need = needs.of(adapter.base_model(model), env)
    return [f"it needs {need.gpu()} and {need.ram_gb:.1f} GB of RAM for one song at a time; more makes more"]


def refuse_other_use(model: str, commercial: bool) -> None:
    """Raises BadInput if the songs are for commercial use, and the weights' licence does not allow it."""
    if commercial:
        licences.refuse_commercial_use(model)


def refuse_unsupported(model: str, env: Mapping[str, str]) -> None:
    """Raises BadInput for a model that is known not to run, and an adapter that cannot be merged here.

    So it does for a misspelt name, before a machine is rented for it.

    Of a HeartMuLa that is here, every file and tensor is looked for, and a line names the command that gets
    what is missing. One that is not here is not refused: another machine may have it.
    """
    if families.of(model) is families.HEARTMULA:
        if _is_heartmula_here(model, env):
            heartmula.tree_of(model, env)
        return
    if not any(mark in model for mark in "/\\~."):  # neither a hub id nor a folder of another machine
        maker.model_name(model)
    model = adapter.base_model(model)
    if model != REHEARSAL:
        found = find.here(model, env)
        supported.refuse(model, found and found.folder)


def _is_heartmula_here(model: str, env: Mapping[str, str]) -> bool:
    """True for a folder, for a name whose folder is set and is here, and for a download that is complete."""
    if model not in HEARTMULA_NAMES:
        return True
    if model == HEARTMULA_REHEARSAL:
        return False
    wanted = sets.find(model)
    is_set = bool(wanted.setting and env.get(wanted.setting))
    return (is_set and places.folder_of(wanted, env).is_dir()) or bool(find.complete(wanted, env))
