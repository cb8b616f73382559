"""A hub with one small model, an empty folder of models, and the tiny HeartMuLa, built once a process."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from tests.fakes import hub as hubs
from tests.worker.models import trees
from worker.models import fetch, tiny_heartmula
from worker.models.hub import Hub


@pytest.fixture
def hub():
    with hubs.serving(trees.repos()) as hub:
        yield hub


@pytest.fixture
def env(hub, tmp_path):
    return trees.env(hub, tmp_path / "models")


@pytest.fixture
def folder(tmp_path):
    """Where the small model goes."""
    return tmp_path / "models" / "demo--tiny"


@pytest.fixture
def waited():
    """The pauses that `get` would have made."""
    return []


@pytest.fixture
def get(env, waited, caplog):
    """Get the small model, or another, without pauses."""
    caplog.set_level(logging.DEBUG)

    def get(name=trees.NAME, said=None, progress=lambda *_: None, **changes):
        changed = env | changes
        return fetch.get(
            name,
            changed,
            tell=(said if said is not None else []).append,
            progress=progress,
            hub=Hub(changed, wait=waited.append),
        )

    return get


@pytest.fixture
def takes_no_write(monkeypatch):
    """From the call on, no file can be written: the disk is full (ENOSPC, EDQUOT), or read-only (EROFS)."""

    def takes_no_write(number=errno.ENOSPC):
        open_ = Path.open

        def refusing(path, mode="r", *arguments, **options):
            if set(mode) & set("wxa+"):
                raise OSError(number, os.strerror(number), str(path))
            return open_(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", refusing)

    return takes_no_write


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Two whole trees that no test may change: `single` files, and `shards`."""
    folder = tmp_path_factory.mktemp("heartmula")
    tiny_heartmula.build(folder / "single")
    tiny_heartmula.build(folder / "shards", shards=3)
    return folder


@pytest.fixture
def tree(built, tmp_path):
    """A tree of single files, to be spoiled."""
    return shutil.copytree(built / "single", tmp_path / "single")


@pytest.fixture
def shards(built, tmp_path):
    """A tree whose models are three shards each, to be spoiled."""
    return shutil.copytree(built / "shards", tmp_path / "shards")
