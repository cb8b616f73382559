"""Find a HeartMuLa by its name or folder, and check that it is whole.

Takes `heartmula`, `heartmula-rehearsal` or a folder. What a user can get wrong raises BadInput before
anything is loaded.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.errors import UserError
from worker.models import heartmula_tree, manifest, tiny_heartmula, verify
from worker.models.fingerprint import fingerprint
from worker.models.heartmula import tree_of
from worker.models.heartmula_tree import FILES, Tree
from worker.songs.families import HEARTMULA_REHEARSAL
from worker.songs.maker import model_name


@dataclass(frozen=True)
class Pretrained:
    """A checked model. `revision`: the hub's commits, or a fingerprint of the folder's files."""

    tree: Tree
    name: str
    revision: str


@contextmanager
def found(model: str) -> Iterator[Pretrained]:
    """A model by its name or folder, while it is loaded. Raises BadInput, and UserError for a full disk."""
    if model != HEARTMULA_REHEARSAL:
        tree = tree_of(model, os.environ)
        yield Pretrained(tree, model_name(model), _revision(tree))
        return
    # Windows does not remove what is still mapped; it lies in the run's scratch folder.
    with tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True) as temporary:
        try:
            tiny_heartmula.build(Path(temporary))
        except OSError as error:
            raise UserError(
                f"cannot write the rehearsal model to {temporary} ({error.strerror or error}); free space"
            ) from None
        tree = heartmula_tree.check(Path(temporary))
        yield Pretrained(tree, model, _revision(tree))


def _revision(tree: Tree) -> str:
    marker = manifest.read(tree.folder, manifest.MARKER)
    if marker and not verify.quick(tree.folder):
        return marker.revision
    settings = b"".join((tree.folder / name).read_bytes() for name in FILES)
    return fingerprint(settings, [*tree.mula_weights, *tree.codec_weights])  # each in order of their names
