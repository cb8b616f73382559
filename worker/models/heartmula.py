"""The HeartMuLa that a name or a folder means, checked before it is loaded. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path

from worker.models import heartmula_tree, manifest, places, sets
from worker.models.heartmula_tree import MULA, Tree
from worker.models.manifest import MARKER
from worker.songs.families import HEARTMULA_NAMES, HEARTMULA_REHEARSAL


def refuse_absent(model: str, env: Mapping[str, str]) -> None:
    """Raises BadInput, as `tree_of`, unless the model is here; the rehearsal's is built when it is loaded."""
    if model != HEARTMULA_REHEARSAL:
        tree_of(model, env)


def tree_of(model: str, env: Mapping[str, str]) -> Tree:
    """The whole tree of `heartmula` or `heartmula-3b`, or of a folder.

    By name it is the set's folder, as MUSICGEN_HEARTMULA_DIR names it. Raises BadInput, in one line with the
    command that fetches it, unless it is whole and its parts fit.
    """
    if model not in HEARTMULA_NAMES:
        return heartmula_tree.check(Path(model).expanduser())
    wanted = sets.find(model)
    folder = places.folder_of(wanted, env)
    known = manifest.read(folder, MARKER)  # else somebody has put the files there: their release is not known
    (repo,) = (part.repo for part in wanted.parts if part.folder == MULA)
    is_ours = known is not None and known.name == wanted.name
    return heartmula_tree.check(folder, model=repo if is_ours else None)
