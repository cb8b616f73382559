"""Find or fetch a HeartMuLa, and check that it is whole.

Takes `heartmula-rehearsal`, the name of a set (worker/models/sets.py), or a folder. What a user can get wrong
raises BadInput before anything is loaded.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.errors import UserError
from worker.models import fetch, find, heartmula_tree, manifest, tiny_heartmula, verify
from worker.models.fingerprint import fingerprint
from worker.models.heartmula_tree import FILES, Tree
from worker.models.progress import Meter
from worker.songs.families import HEARTMULA_NAMES, HEARTMULA_REHEARSAL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A checked model. `revision`: the hub's commits, or a fingerprint of the folder's files."""

    tree: Tree
    name: str
    revision: str


@contextmanager
def found(model: str) -> Iterator[Pretrained]:
    """A model by its name or folder, while it is loaded. Raises BadInput, and UserError for a full disk."""
    if model == HEARTMULA_REHEARSAL:
        # Windows does not remove what is still mapped; it lies in the run's scratch folder.
        with tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary)
            try:
                tiny_heartmula.build(folder)
            except OSError as error:
                raise UserError(
                    f"cannot write the rehearsal model to {folder} ({error.strerror or error}); free space"
                ) from None
            yield _in_folder(folder, model)
    elif model in HEARTMULA_NAMES:
        yield _in_folder(_fetched(HEARTMULA_NAMES[model]), HEARTMULA_NAMES[model])
    else:
        folder = Path(model).expanduser().resolve()
        yield _in_folder(folder, folder.name)


def _fetched(name: str) -> Path:
    if here := find.here(name, os.environ):
        return here.folder
    got = fetch.get(
        name,
        os.environ,
        tell=lambda line: log.warning("model %s: %s", name, line),
        progress=Meter(lambda now: log.warning("fetching the model: %s", now)),
    )
    return got.folder


def _in_folder(folder: Path, name: str) -> Pretrained:
    tree = heartmula_tree.check(folder)
    marker = manifest.read(folder, manifest.MARKER)
    if marker and not verify.quick(folder):
        return Pretrained(tree, name, marker.revision)
    settings = b"".join((folder / file).read_bytes() for file in FILES)
    weights = sorted(
        [*tree.mula_weights, *tree.codec_weights], key=lambda path: (path.parent.name, path.name)
    )
    return Pretrained(tree, name, fingerprint(settings, weights))
